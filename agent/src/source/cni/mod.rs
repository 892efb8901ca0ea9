//! CNI configurations, and which CNI agents run in this network namespace.
//!
//! Files of the host and names of processes, looked at every few seconds:
//! nothing here changes faster than an administrator types. A file is read
//! again only when its size or its time of change is another.

mod files;
mod processes;
pub mod translate;

use std::path::{Path, PathBuf};
use std::time::Duration;

use overlaywatch_core::assembly::{SourceId, Update};
use overlaywatch_core::model::{Cni, CniAgent};
use tokio::sync::mpsc::Sender;

use self::files::Files;
use super::meter::{Closed, disabled, metered, pause};
use super::{Options, SourceError};

/// How often files are looked at.
const EVERY: Duration = Duration::from_secs(5);
/// How many times less often processes are: each of them is a file to be opened.
const PROCESSES_EVERY: u32 = 3;

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
    looks: u32,
}

impl Reader {
    /// Nothing read yet.
    #[must_use]
    pub fn new(roots: Roots) -> Self {
        Self { proc: roots.proc, files: Files::new(roots.host), running: None, looks: 0 }
    }

    /// One look.
    ///
    /// # Errors
    /// When a folder is there and cannot be listed; a file that cannot be read
    /// says so in its own place.
    pub fn read(&mut self) -> Result<Cni, SourceError> {
        let mut cni = self.files.read()?;
        if self.looks.is_multiple_of(PROCESSES_EVERY) {
            self.running = processes::running(&self.proc)?;
        }
        self.looks = self.looks.wrapping_add(1);
        cni.running.clone_from(&self.running);
        Ok(cni)
    }
}

#[cfg(test)]
mod tests;
