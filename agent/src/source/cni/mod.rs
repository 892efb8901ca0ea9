//! CNI configurations, and which CNI agents run in this network namespace.
//!
//! Files of the host and names of processes, looked at every few seconds:
//! nothing here changes faster than an administrator types. A file is read
//! again only when its size or its time of change is another.

mod files;
mod processes;
pub mod translate;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use overlaywatch_core::assembly::{SourceId, Update};
use overlaywatch_core::model::{Cni, CniAgent, Unread};
use overlaywatch_core::time::{Mono, SECOND};
use tokio::sync::mpsc::Sender;

use self::files::Files;
use self::processes::Looked;
use super::meter::{Closed, disabled, metered, pause};
use super::{Options, SourceError};
use crate::clock;

/// How often files are looked at.
const EVERY: Duration = Duration::from_secs(5);
/// Least time between two looks at processes: each of them is a file to be opened.
const PROCESSES_EVERY: Duration = Duration::from_secs(15);
/// Most time between two, however long one takes.
const PROCESSES_LONGEST: Duration = Duration::from_secs(120);
/// They may take this share of a core: one in a thousand.
const SHARE: u32 = 1_000;
/// A look that takes more of a processor's time is given up, nanoseconds: so many
/// processes no node has.
const PATIENCE_NS: u64 = SECOND;

/// Where to read.
#[derive(Clone, Debug)]
pub struct Roots {
    /// The host's files.
    pub host: PathBuf,
    /// Processes.
    pub proc: PathBuf,
}

impl Roots {
    /// The host's files below `host`, and this machine's processes.
    #[must_use]
    pub fn at(host: &Path) -> Self {
        Self { host: host.to_owned(), proc: "/proc".into() }
    }
}

/// Looks every few seconds until nobody listens any more.
///
/// # Errors
/// [`Closed`] when the receiving end is gone; if disabled it returns at once.
pub fn run(options: &Options, roots: &Roots, updates: &Sender<Update>) -> Result<(), Closed> {
    if !options.enabled.contains(&SourceId::Cni) {
        return disabled(updates, SourceId::Cni);
    }
    let mut reader = Reader::new(roots.clone());
    loop {
        metered(updates, SourceId::Cni, || Ok(Update::Cni(Box::new(reader.read()?))))?;
        pause(EVERY, updates)?;
    }
}

/// Reads what changed since the last time.
#[derive(Debug)]
pub struct Reader {
    proc: PathBuf,
    files: Files,
    running: Option<Vec<CniAgent>>,
    /// There are too many of them to look at.
    gave_up: bool,
    /// When they are looked at again.
    due: Mono,
}

impl Reader {
    /// Nothing read yet.
    #[must_use]
    pub fn new(roots: Roots) -> Self {
        let (proc, files) = (roots.proc, Files::new(roots.host));
        Self { proc, files, running: None, gave_up: false, due: Mono::default() }
    }

    /// One look.
    ///
    /// # Errors
    /// When there is no /proc. A file or folder that cannot be read, and processes
    /// that are too many, are told in [`Cni::unread`]: the rest is known.
    pub fn read(&mut self) -> Result<Cni, SourceError> {
        let mut cni = self.files.read();
        let at = clock::mono();
        if at >= self.due {
            let before = clock::thread_cpu_ns();
            let looked = processes::running(&self.proc, before.saturating_add(PATIENCE_NS))?;
            self.due = at.plus(nanoseconds(rest(clock::thread_cpu_ns().saturating_sub(before))));
            self.gave_up = looked == Looked::GaveUp;
            self.running = looked.agents();
        }
        if self.gave_up {
            let slow = io::Error::from_raw_os_error(libc::ETIMEDOUT);
            let error = SourceError::io("reading the names of all processes", slow);
            let path = self.proc.display().to_string();
            cni.unread.push(Unread { path, denied: false, detail: error.to_string() });
        }
        cni.running.clone_from(&self.running);
        Ok(cni)
    }
}

/// How long to leave processes alone after a look that took this processor time.
fn rest(cpu_ns: u64) -> Duration {
    let share = Duration::from_nanos(cpu_ns).saturating_mul(SHARE);
    share.clamp(PROCESSES_EVERY, PROCESSES_LONGEST)
}

fn nanoseconds(of: Duration) -> u64 {
    u64::try_from(of.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
