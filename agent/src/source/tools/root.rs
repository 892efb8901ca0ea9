//! Files below somebody else's root directory.
//!
//! Whoever owns that directory may be hostile: nothing of it is run, no link
//! leads out of it, nothing but a regular file is opened, no other mount is
//! entered in a container, nor one on the host whose server may not answer, and
//! what is read is bounded.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, SFlag, fstat};
use overlaywatch_core::model::ToolVersion;

use super::translate::{self, Tool};

/// No program or library that is looked into is larger; libnftables has 1 MB.
const MAX_BYTES: u64 = 4 << 20;

/// A directory that is the root for whatever is opened in it.
#[derive(Debug)]
pub(super) struct Root {
    directory: OwnedFd,
    /// Mounts below it are entered, but for those at these paths; none where no
    /// mount is.
    avoids: Option<Vec<String>>,
}

impl Root {
    /// The directory that a link such as /proc/PID/root leads to. Following it
    /// asks nothing of the file system behind it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let directory = File::options().read(true).custom_flags(flags).open(path)?;
        Ok(Self { directory: directory.into(), avoids: None })
    }

    /// The same, with the mounts below it but those at `avoided`.
    pub(super) fn crossing(self, avoided: Vec<String>) -> Self {
        Self { avoids: Some(avoided), ..self }
    }

    /// The number of the mount that it is on, which is nobody else's as long as
    /// this is open. It is the kernel's own, so that no file system is asked
    /// (proc_pid_fdinfo(5)).
    pub(super) fn mount(&self) -> io::Result<u64> {
        let path = format!("/proc/thread-self/fdinfo/{}", self.directory.as_raw_fd());
        let number = translate::mount_of_descriptor(&fs::read_to_string(path)?);
        number.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
    }

    /// A file, not opened for reading yet; none where there is none.
    ///
    /// # Errors
    /// When the kernel cannot keep to a root (openat2(2), Linux 5.6), or a
    /// security policy forbids it, see [`is_unbounded`]; any other error says that
    /// something is there that may not be looked at, as behind a folder without
    /// permission or on another mount.
    pub(super) fn find(&self, path: &str) -> io::Result<Option<Found>> {
        let mut resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        match &self.avoids {
            None => resolve |= ResolveFlag::RESOLVE_NO_XDEV,
            Some(avoided) if avoided.iter().any(|mount| is_below(path, mount)) => {
                return Err(io::Error::from_raw_os_error(libc::EXDEV));
            }
            Some(_) => {}
        }
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
        let file = match openat2(self.directory.as_fd(), path, how) {
            Ok(file) => file,
            Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let status = fstat(&file)?;
        let is_regular = status.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
        Ok(is_regular.then_some(Found { file, status }))
    }
}

/// Whether a path is that of a mount or leads through it, both from the same root.
fn is_below(path: &str, mount: &str) -> bool {
    let rest = path.trim_start_matches('/').strip_prefix(mount.trim_start_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether an error of [`Root::find`] is one of the kernel and no file's.
pub(super) fn is_unbounded(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
}

/// A regular file.
#[derive(Debug)]
pub(super) struct Found {
    file: OwnedFd,
    status: FileStat,
}

/// What says that a file is the one it was: device, number, size, and the time
/// of its last change, which nobody can set.
pub(super) type Identity = (u64, u64, i64, i64, i64);

impl Found {
    /// Which file it is.
    pub(super) fn identity(&self) -> Identity {
        let FileStat { st_dev, st_ino, st_size, st_ctime, st_ctime_nsec, .. } = self.status;
        (st_dev, st_ino, st_size, st_ctime, st_ctime_nsec)
    }

    /// Its content; none where it is too large or cannot be read.
    fn read(&self) -> Option<Vec<u8>> {
        let size = u64::try_from(self.status.st_size).ok().filter(|&size| size <= MAX_BYTES)?;
        // The descriptor's own link: no path is looked up a second time.
        let link = format!("/proc/thread-self/fd/{}", self.file.as_raw_fd());
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = File::options().read(true).custom_flags(flags).open(link).ok()?;
        let mut bytes = Vec::with_capacity(usize::try_from(size).ok()?);
        // It may have grown meanwhile: then it changes, and is read again later.
        file.take(size).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }
}

/// Versions of files that were read before.
#[derive(Debug, Default)]
pub(super) struct Versions {
    known: BTreeMap<(Identity, Tool), Option<ToolVersion>>,
    /// Those asked for since the last [`Versions::forget_unused`].
    used: BTreeMap<(Identity, Tool), Option<ToolVersion>>,
}

impl Versions {
    /// The version of a tool by its file, which is read the first time only.
    pub(super) fn of(&mut self, tool: Tool, found: &Found) -> Option<ToolVersion> {
        let key = (found.identity(), tool);
        let version = self.known.get(&key).or_else(|| self.used.get(&key)).copied();
        let version = version
            .unwrap_or_else(|| found.read().and_then(|bytes| translate::version(tool, &bytes)));
        self.used.insert(key, version);
        version
    }

    /// Drops what nobody asked for since the last time.
    pub(super) fn forget_unused(&mut self) {
        self.known = std::mem::take(&mut self.used);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    const IPSET: &[u8] =
        b"\x007.11\0Kernel and userspace incompatible: settype %s with revision %u not supported\0";

    /// A directory with `root` in it, beside a file that must stay out of reach.
    fn prison() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("root/usr/sbin")).unwrap();
        fs::write(directory.path().join("ipset"), IPSET).unwrap();
        directory
    }

    fn version(directory: &tempfile::TempDir, path: &str) -> Option<ToolVersion> {
        let root = Root::open(&directory.path().join("root")).unwrap();
        // A magic link is there, and may not be looked at.
        let found = root.find(path).ok()??;
        Versions::default().of(Tool::Ipset, &found)
    }

    #[test]
    fn a_mount_that_is_to_be_avoided_is_no_empty_folder() {
        let directory = prison();
        fs::write(directory.path().join("root/usr/sbin/ipset"), IPSET).unwrap();
        let root = || Root::open(&directory.path().join("root")).unwrap();
        let root = root().crossing(vec!["/usr/local".to_owned(), "/usr/sbin".to_owned()]);
        for path in ["usr/sbin/ipset", "/usr/sbin/ipset", "usr/local/sbin/ipset"] {
            let error = root.find(path).unwrap_err();
            assert!(!is_unbounded(&error), "{path}");
        }
        assert!(root.find("usr/sbin-of-others/ipset").unwrap().is_none());
    }

    #[test]
    fn a_root_tells_its_mount() {
        let mount = Root::open(Path::new("/proc")).unwrap().mount().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!(translate::file_system(&mounts, mount), Some("proc"));
    }

    #[test]
    fn links_lead_nowhere_out_of_the_root() {
        let directory = prison();
        let place = directory.path().join("root/usr/sbin");
        let outside = directory.path().join("ipset");
        symlink(&outside, place.join("absolute")).unwrap();
        symlink("../../../ipset", place.join("relative")).unwrap();
        for path in ["usr/sbin/absolute", "usr/sbin/relative", "../ipset", "/../ipset"] {
            assert_eq!(version(&directory, path), None, "{path}");
        }
        // Inside of it they lead where they lead its owner.
        fs::write(directory.path().join("root/ipset"), IPSET).unwrap();
        symlink("/ipset", place.join("inside")).unwrap();
        let expected = Some(ToolVersion::two(7, 11));
        for path in ["usr/sbin/inside", "usr/sbin/relative", "../ipset"] {
            assert_eq!(version(&directory, path), expected, "{path}");
        }
    }

    #[test]
    fn a_magic_link_is_not_followed() {
        let directory = prison();
        let link = directory.path().join("root/ipset");
        symlink("/proc/self/exe", &link).unwrap();
        assert_eq!(version(&directory, "ipset"), None);
    }

    #[test]
    fn nothing_but_a_regular_file_is_opened() {
        let directory = prison();
        let place = directory.path().join("root/usr/sbin");
        // Opening one would wait for a writer.
        mkfifo(&place.join("fifo"), Mode::S_IRWXU).unwrap();
        fs::create_dir(place.join("folder")).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(place.join("socket")).unwrap();
        for path in ["usr/sbin/fifo", "usr/sbin/folder", "usr/sbin/socket", "usr/sbin/nothing"] {
            let root = Root::open(&directory.path().join("root")).unwrap();
            assert!(root.find(path).unwrap().is_none(), "{path}");
        }
    }

    #[test]
    fn a_file_too_large_is_not_read() {
        let directory = prison();
        let path = directory.path().join("root/ipset");
        fs::write(&path, IPSET).unwrap();
        assert!(version(&directory, "ipset").is_some());
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(MAX_BYTES).unwrap();
        assert!(version(&directory, "ipset").is_some());
        file.set_len(MAX_BYTES + 1).unwrap();
        assert_eq!(version(&directory, "ipset"), None);
    }

    #[test]
    fn a_file_that_changed_is_read_again_and_others_are_forgotten() {
        let directory = prison();
        let path = directory.path().join("root/ipset");
        fs::write(&path, IPSET).unwrap();
        let root = Root::open(&directory.path().join("root")).unwrap();
        let mut versions = Versions::default();
        let mut look = || {
            let found = root.find("ipset").unwrap()?;
            let version = versions.of(Tool::Ipset, &found);
            versions.forget_unused();
            Some((version, versions.known.len()))
        };
        assert_eq!(look(), Some((Some(ToolVersion::two(7, 11)), 1)));
        assert_eq!(look(), Some((Some(ToolVersion::two(7, 11)), 1)));
        fs::remove_file(&path).unwrap();
        fs::write(&path, [&IPSET[..4], b"7", &IPSET[5..]].concat()).unwrap();
        assert_eq!(look(), Some((Some(ToolVersion::two(7, 17)), 1)));
    }
}
