//! Archives that a kernel unpacks into its first root: the "new ASCII" format
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What a path of the archive is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Folder,
    /// A symbolic link, with where it leads.
    Link(PathBuf),
    /// A program or another file, by where its bytes are.
    File(PathBuf),
    /// A program whose text is this.
    Script(String),
}

/// Everything in an archive by its path, which does not begin with a slash.
/// Folders come before what is in them.
#[derive(Debug, Default)]
pub(crate) struct Contents(BTreeMap<PathBuf, Entry>);

/// File types and permissions of inode(7).
const FOLDER: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const PROGRAM: u32 = 0o100_755;
/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// Names and contents begin at multiples of it.
const ALIGNMENT: usize = 4;

impl Contents {
    /// Adds an entry, and the folders that lead to it. What is there stays.
    pub(crate) fn add(&mut self, path: impl AsRef<Path>, entry: Entry) {
        let path = path.as_ref();
        for folder in path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
            self.0.entry(folder.to_owned()).or_insert(Entry::Folder);
        }
        self.0.entry(path.to_owned()).or_insert(entry);
    }

    /// What a path is, if it is in the archive.
    pub(crate) fn get(&self, path: &Path) -> Option<&Entry> {
        self.0.get(path)
    }

    /// Writes the archive; everything belongs to root.
    ///
    /// # Errors
    /// When a file cannot be read, is too large, or `out` takes no more.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for (number, (path, entry)) in (1_u32..).zip(&self.0) {
            let (mode, bytes) = match entry {
                Entry::Folder => (FOLDER, Vec::new()),
                Entry::Link(target) => (LINK, target.as_os_str().as_encoded_bytes().to_vec()),
                Entry::File(source) => (PROGRAM, fs::read(source)?),
                Entry::Script(text) => (PROGRAM, text.clone().into_bytes()),
            };
            write_one(out, number, mode, path.as_os_str().as_encoded_bytes(), &bytes)?;
        }
        write_one(out, 0, 0, TRAILER.as_bytes(), &[])
    }
}

fn write_one(
    out: &mut impl Write,
    number: u32,
    mode: u32,
    name: &[u8],
    bytes: &[u8],
) -> io::Result<()> {
    let length = |of: usize| u32::try_from(of).map_err(|_| io::ErrorKind::FileTooLarge);
    let (size, name_size) = (length(bytes.len())?, length(name.len() + 1)?);
    // Number, mode, user, group, links, time, size, device, device of a special
    // file, size of the name with its zero, and a checksum that this format lacks.
    let fields = [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    let header: String = fields.iter().map(|field| format!("{field:08X}")).collect();
    let header = format!("070701{header}");
    out.write_all(header.as_bytes())?;
    out.write_all(name)?;
    out.write_all(&[0])?;
    out.write_all(padding(header.len() + name.len() + 1))?;
    out.write_all(bytes)?;
    out.write_all(padding(bytes.len()))
}

fn padding(written: usize) -> &'static [u8] {
    match written % ALIGNMENT {
        1 => &[0; 3],
        2 => &[0; 2],
        3 => &[0; 1],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_usual_tool_unpacks_it() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::write(&source, "of five").unwrap();
        let mut contents = Contents::default();
        contents.add("usr/bin/tool", Entry::File(source));
        contents.add("bin", Entry::Link("usr/bin".into()));
        contents.add("init", Entry::Script("#!/bin/tool\n".into()));
        // The first of a name stays.
        contents.add("init", Entry::Folder);
        let archive = folder.path().join("archive");
        contents.write(&mut fs::File::create(&archive).unwrap()).unwrap();
        let into = folder.path().join("into");
        fs::create_dir(&into).unwrap();
        let status = Command::new("busybox")
            .args(["cpio", "-i", "-d"])
            .current_dir(&into)
            .stdin(Stdio::from(fs::File::open(&archive).unwrap()))
            .status()
            .unwrap();
        assert!(status.success());
        assert_eq!(fs::read_to_string(into.join("bin/tool")).unwrap(), "of five");
        assert_eq!(fs::read_to_string(into.join("init")).unwrap(), "#!/bin/tool\n");
        assert_eq!(fs::read_link(into.join("bin")).unwrap(), Path::new("usr/bin"));
    }

    #[test]
    fn folders_lead_to_everything() {
        let mut contents = Contents::default();
        contents.add("a/b/c", Entry::Script(String::new()));
        assert_eq!(contents.get(Path::new("a/b")), Some(&Entry::Folder));
        assert_eq!(contents.get(Path::new("a")), Some(&Entry::Folder));
        assert_eq!(contents.get(Path::new("")), None);
    }
}
