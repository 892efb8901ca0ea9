//! Files of the host, found without leaving its root and read when they change.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use overlaywatch_core::fact::Gap;
use overlaywatch_core::model::{
    Cni, CniConfiguration, CniDirectory, CniFile, FLANNEL_NOTE, K3S_CONTAINERD, K3sNetwork,
    USUAL_DIRECTORY, Unread,
};

use super::translate;
use crate::source::SourceError;

/// K3s's own folder (pkg/agent/config, `CNIConfDir`).
const K3S_DIRECTORY: &str = "/var/lib/rancher/k3s/agent/etc/cni/net.d";
/// No file of these is larger; one that is was put there by mistake.
const MOST_BYTES: u64 = 1 << 20;
/// More files of a folder are not read.
const MOST_FILES: usize = 64;
/// More entries of a folder are not looked at.
const MOST_ENTRIES: usize = 4_096;
/// Symbolic links on the way to one file, as many as the kernel follows
/// (path_resolution(7)).
const MOST_LINKS: u32 = 40;

/// What a file was when it was read.
type Stamp = (u64, u64, u64, i64, i64);
/// A file as it was read, or what is wrong with it.
type Known = (Stamp, Result<CniConfiguration, String>);

/// The files, with what was read of them last.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    known: BTreeMap<String, Known>,
    /// What the last look could not read.
    unread: Vec<Unread>,
}

impl Files {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, known: BTreeMap::new(), unread: Vec::new() }
    }

    /// Everything that files say; what cannot be read is named beside it, and
    /// leaves only that unknown which it would have told.
    pub(super) fn read(&mut self) -> Cni {
        let k3s = self.text(K3S_CONTAINERD).map(|text| translate::k3s_network(&text));
        let flannel = self.text(FLANNEL_NOTE).map(|text| translate::flannel_note(&text));
        let mut paths = vec![USUAL_DIRECTORY.to_owned(), K3S_DIRECTORY.to_owned()];
        if let Some(K3sNetwork::Own(path)) = &k3s
            && !paths.iter().any(|known| known == path.trim_end_matches('/'))
        {
            paths.push(path.trim_end_matches('/').to_owned());
        }
        let before = std::mem::take(&mut self.known);
        let mut directories = Vec::new();
        for path in paths {
            match self.directory(&path, &before) {
                Ok(directory) => directories.extend(directory),
                Err(error) => self.pass(path, error),
            }
        }
        let unread = std::mem::take(&mut self.unread);
        Cni { directories, flannel, k3s, running: None, unread }
    }

    /// Notes what cannot be read.
    fn pass(&mut self, path: String, source: io::Error) {
        let what = format!("reading {path}");
        // What opens every file of the host, and is granted to nobody unasked.
        let error = match source.kind() {
            io::ErrorKind::PermissionDenied => {
                SourceError::Lacking { what, source, capability: "CAP_DAC_READ_SEARCH" }
            }
            _ => SourceError::io(what, source),
        };
        self.unread.push(Unread {
            path,
            denied: error.gap() == Gap::Denied,
            detail: error.to_string(),
        });
    }

    /// A folder's files; none where there is no such folder.
    fn directory(
        &mut self,
        path: &str,
        before: &BTreeMap<String, Known>,
    ) -> io::Result<Option<CniDirectory>> {
        let entries = match inside(&self.root, path).and_then(fs::read_dir) {
            Err(error) if is_nothing(&error) => return Ok(None),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries.take(MOST_ENTRIES) {
            let name = entry?.file_name();
            // What is no text is nothing that an administrator wrote.
            names.extend(name.into_string().ok().filter(|name| translate::is_configuration(name)));
        }
        names.sort_unstable();
        let is_cut = names.len() > MOST_FILES;
        names.truncate(MOST_FILES);
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let path = format!("{path}/{name}");
            // A file that went meanwhile is not there.
            let (stamp, content) = match self.configuration(&path, before) {
                Ok(Some(known)) => known,
                Ok(None) => continue,
                Err(error) => {
                    self.pass(path, error);
                    continue;
                }
            };
            self.known.insert(path.clone(), (stamp, content.clone()));
            files.push(CniFile { path, content });
        }
        Ok(Some(CniDirectory { path: path.to_owned(), files, is_cut }))
    }

    /// One file, read again if it is another; none where it is gone, or is no file.
    /// A file that only root may read (installers make them so, since the CIS
    /// benchmark wants it) is as good as any to the runtime: nothing is known of
    /// it, nor of which one is in force.
    fn configuration(
        &self,
        path: &str,
        before: &BTreeMap<String, Known>,
    ) -> io::Result<Option<Known>> {
        let opened = inside(&self.root, path).and_then(open);
        let (file, stamp) = match opened {
            Ok(opened) => opened,
            Err(error) if is_nothing(&error) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            Err(error) => return Ok(Some((Stamp::default(), Err(error.to_string())))),
        };
        if let Some((known, content)) = before.get(path)
            && *known == stamp
        {
            return Ok(Some((stamp, content.clone())));
        }
        let content = load(file)
            .map_err(|error| error.to_string())
            .and_then(|text| translate::configuration(path, &text));
        Ok(Some((stamp, content)))
    }

    /// A whole file; none where there is none, or it cannot be read.
    fn text(&mut self, path: &str) -> Option<String> {
        match inside(&self.root, path).and_then(open).and_then(|(file, _)| load(file)) {
            Ok(text) => return Some(text),
            Err(error) if is_nothing(&error) => {}
            Err(error) => self.pass(path.to_owned(), error),
        }
        None
    }
}

/// Nothing is there.
fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Opens a regular file, and nothing that could block or be followed elsewhere.
fn open(path: PathBuf) -> io::Result<(File, Stamp)> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let stamp = (about.dev(), about.ino(), about.size(), about.ctime(), about.ctime_nsec());
    Ok((file, stamp))
}

fn load(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(MOST_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(io::Error::other(format!("larger than {MOST_BYTES} bytes")));
    }
    Ok(text)
}

/// Where a path of the host is below `root`: symbolic links, which the host
/// means from its own root, are followed there and never lead out of it.
fn inside(root: &Path, path: &str) -> io::Result<PathBuf> {
    let mut rest: Vec<PathBuf> = components(Path::new(path));
    let (mut at, mut links) = (PathBuf::new(), 0);
    while let Some(next) = rest.pop() {
        if next == Path::new("..") {
            at.pop();
            continue;
        }
        let here = root.join(&at).join(&next);
        if fs::symlink_metadata(&here)?.file_type().is_symlink() {
            links += 1;
            if links > MOST_LINKS {
                return Err(io::Error::from_raw_os_error(libc::ELOOP));
            }
            let target = fs::read_link(&here)?;
            if target.is_absolute() {
                at = PathBuf::new();
            }
            rest.extend(components(&target));
        } else {
            at.push(next);
        }
    }
    Ok(root.join(at))
}

/// A path's names, the last one first.
fn components(path: &Path) -> Vec<PathBuf> {
    path.components()
        .rev()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().into())
        .collect()
}
