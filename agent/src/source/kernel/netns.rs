//! Network namespaces by their inode, as pins name them.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::source::SourceError;

/// The calling thread's.
const OWN: &str = "/proc/thread-self/ns/net";
/// Where ip-netns(8) keeps those that have a name.
const NAMED: &str = "/run/netns";

/// Inode of the calling thread's network namespace.
pub(super) fn own() -> Result<u32, SourceError> {
    let inode =
        fs::metadata(OWN).map_err(|error| SourceError::io(format!("reading {OWN}"), error))?.ino();
    u32::try_from(inode).map_err(|_| SourceError::Malformed {
        what: OWN.to_owned(),
        reason: format!("inode {inode} is too large"),
    })
}

/// Does something in another namespace; none when there is no such namespace
/// any more, or it may not be entered.
pub(super) fn inside<T: Send>(inode: u32, work: impl FnOnce() -> T + Send) -> Option<T> {
    if own().is_ok_and(|own| own == inode) {
        return Some(work());
    }
    let namespace = File::open(find(inode)?).ok()?;
    // A thread of its own, since a thread stays where it went.
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET).ok()?;
            Some(work())
        });
        thread.join().ok().flatten()
    })
}

/// A path to a namespace: that of a process in it, or one with a name.
fn find(inode: u32) -> Option<PathBuf> {
    let in_folder = |folder: &str, rest: &'static str| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(move |entry| entry.path().join(rest))
    };
    let is_it = |path: &Path| fs::metadata(path).is_ok_and(|found| found.ino() == u64::from(inode));
    let named = fs::read_dir(NAMED).into_iter().flatten().flatten().map(|entry| entry.path());
    named.chain(in_folder("/proc", "ns/net")).find(|path| is_it(path))
}
