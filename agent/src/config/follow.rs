//! Follows the peers file: whatever way it is replaced, the list in force is
//! the latest good one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use overlaywatch_core::assembly::{SourceId, SourceReport, Update};
use overlaywatch_core::fact::Gap;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::Sender;

use super::peers_file::read_peers_file;
use crate::clock;

/// Changes are looked for this often where no event tells: the file may be a
/// link into a directory that is not watched, or lie on a network file system.
const RECHECK: Duration = Duration::from_secs(10);
/// Events come in bursts (create, write, rename); one reading serves a burst.
const SETTLE: Duration = Duration::from_millis(50);

/// Reads the peers file now and after every change, and tells the list and how
/// the reading went. A file that is malformed or gone leaves the old list in
/// force and shows as a gap. Ends when nobody listens any more.
pub async fn follow_peers(path: PathBuf, updates: Sender<Update>) {
    let watch = Watch::new(&path);
    if let Err(error) = &watch {
        tracing::warn!(
            path = %path.display(), %error,
            "the peers file cannot be watched; it is looked at every {} s", RECHECK.as_secs()
        );
    }
    let mut seen = None;
    loop {
        // Before it is read: a change in between is then noticed afterwards.
        let identity = Identity::of(&path);
        if seen != Some(identity) {
            seen = Some(identity);
            for update in read(path.clone()).await {
                if updates.send(update).await.is_err() {
                    return;
                }
            }
        }
        tokio::select! {
            () = updates.closed() => return,
            () = changed(watch.as_ref().ok()) => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(RECHECK) => {}
        }
    }
}

async fn read(path: PathBuf) -> Vec<Update> {
    let start = clock::mono();
    let result = tokio::task::spawn_blocking(move || read_peers_file(&path)).await;
    let report = |gap, detail| {
        Update::Source(SourceReport {
            source: SourceId::Peers,
            gap,
            detail,
            duration_ns: clock::mono().since(start),
        })
    };
    match result {
        Ok(Ok(list)) => vec![Update::PeersFile(Some(list)), report(None, String::new())],
        Ok(Err(error)) => {
            tracing::warn!(%error, "the peers file is not usable; the old list stays in force");
            vec![report(Some(Gap::Failed), error.to_string())]
        }
        // The runtime is shutting down, or the reader panicked and said so.
        Err(error) => vec![report(Some(Gap::Failed), error.to_string())],
    }
}

/// What tells one content of a path from the next, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    There { device: u64, inode: u64, bytes: u64, modified: (i64, i64), changed: (i64, i64) },
    Gone(Option<i32>),
}

impl Identity {
    fn of(path: &Path) -> Self {
        match std::fs::metadata(path) {
            Ok(meta) => Self::There {
                device: meta.dev(),
                inode: meta.ino(),
                bytes: meta.size(),
                modified: (meta.mtime(), meta.mtime_nsec()),
                changed: (meta.ctime(), meta.ctime_nsec()),
            },
            Err(error) => Self::Gone(error.raw_os_error()),
        }
    }
}

/// Waits until something happens in the directory; for ever without a watch.
async fn changed(watch: Option<&Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// Watches the directory that a path lies in. Not the file itself: editors and
/// ConfigMap volumes replace it by renaming another one over it, or over the
/// directory link that it is reached through, and a watch on a file stays with
/// the old inode (inotify(7)).
struct Watch {
    inotify: AsyncFd<Descriptor>,
    directory: PathBuf,
}

/// [`Inotify`] as tokio wants to have it.
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    fn new(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        // SAFETY: the descriptor is open, `Descriptor` owns it until it is
        // dropped, and nothing ever puts another one in its place.
        let inotify =
            unsafe { AsyncFd::register_with_interest(Descriptor(inotify), Interest::READABLE) }?;
        let watch = Self { inotify, directory };
        watch.arm()?;
        Ok(watch)
    }

    fn arm(&self) -> io::Result<()> {
        let events = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ONLYDIR;
        self.inotify.get_ref().0.add_watch(&self.directory, events)?;
        Ok(())
    }

    async fn changed(&self) {
        // Armed each time: adding a watch that exists changes nothing, and one
        // whose directory was replaced moves on to the new one. Where it is
        // missing now, the next recheck tries again.
        let _ = self.arm();
        // An error of epoll leaves the recheck, which needs no events.
        let Ok(mut ready) = self.inotify.readable().await else {
            return std::future::pending().await;
        };
        while self.inotify.get_ref().0.read_events().is_ok() {}
        ready.clear_ready();
    }
}
