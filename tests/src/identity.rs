//! Whose a namespace is: names carry the lab's process and its start time, so
//! that what a killed lab left is told from what a living one uses.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{netns, pins};

/// What everything of the lab begins with.
const PREFIX: &str = "owlab-";
/// Where runs keep the files of their agents.
const RUN_DIRECTORY: &str = "/run/overlaywatch-lab";

/// How often a directory is made again that another lab took away meanwhile.
const ATTEMPTS: u32 = 16;

/// This lab's name: `owlab-PID-STARTED`.
///
/// # Errors
/// When /proc/self/stat cannot be read.
pub fn own() -> Result<&'static str> {
    static OWN: OnceLock<String> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    let pid = std::process::id();
    let started = started(pid).context("cannot read /proc/self/stat: is /proc mounted?")?;
    Ok(OWN.get_or_init(|| format!("{PREFIX}{pid}-{started}")))
}

/// A directory of this lab's for one run; it lives under /run, in memory.
///
/// # Errors
/// When it cannot be made.
pub fn run_directory(run: &str) -> Result<PathBuf> {
    let path = Path::new(RUN_DIRECTORY).join(own()?).join(run);
    make_directory(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// Makes a directory that other labs share the upper part of: one that ends
/// takes that away while it is empty.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    let mut attempts = 0;
    loop {
        match fs::create_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempts < ATTEMPTS => {
                attempts += 1;
            }
            made => return made,
        }
    }
}

/// Removes a run's directory, and the lab's when it was the last.
pub fn remove_run_directory(path: &Path) {
    // What cannot be removed now is found by the next lab's clean-up.
    let _ = fs::remove_dir_all(path);
    let _ = path.parent().map(fs::remove_dir);
    let _ = fs::remove_dir(RUN_DIRECTORY);
}

/// When a process started, in clock ticks since boot: proc(5), field 22 of stat.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command in field 2 may hold spaces and parentheses: count after the last one.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Whether `name` belongs to a lab that no longer runs.
fn is_abandoned(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let mut parts = rest.split('-').map(str::parse::<u64>);
    let (Some(Ok(pid)), Some(Ok(start))) = (parts.next(), parts.next()) else { return false };
    u32::try_from(pid).is_ok_and(|pid| started(pid) != Some(start))
}

/// What a clean-up did.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// What was removed.
    pub removed: Vec<String>,
    /// What could not be removed, and why.
    pub stuck: Vec<String>,
}

/// Removes what labs that no longer run left behind, the processes in their
/// namespaces included.
///
/// # Errors
/// When /proc cannot be read.
pub fn clean() -> Result<Cleaned> {
    let mut cleaned = Cleaned::default();
    let abandoned = |directory: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_str().is_some_and(is_abandoned))
            .map(|entry| entry.path())
            .collect()
    };
    let namespaces = abandoned(netns::DIRECTORY);
    let inodes: HashSet<(u64, u64)> = namespaces
        .iter()
        .filter_map(|path| fs::metadata(path).ok())
        .map(|m| identity(&m))
        .collect();
    for pid in processes_in(&inodes)? {
        if kill(pid, Signal::SIGKILL).is_ok() {
            cleaned.removed.push(format!("process {pid}"));
        }
    }
    for path in namespaces {
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        cleaned.note("namespace", &path, fs::remove_file(&path));
    }
    for path in abandoned(RUN_DIRECTORY) {
        cleaned.note("directory", &path, fs::remove_dir_all(&path));
    }
    let _ = fs::remove_dir(RUN_DIRECTORY);
    for path in abandoned(pins::DIRECTORY) {
        cleaned.note("pinned programs", &path, fs::remove_dir_all(&path));
    }
    let _ = fs::remove_dir(pins::DIRECTORY);
    Ok(cleaned)
}

impl Cleaned {
    fn note(&mut self, what: &str, path: &Path, outcome: io::Result<()>) {
        let what = format!("{what} {}", path.display());
        match outcome {
            Ok(()) => self.removed.push(what),
            // Another lab is at the same clean-up.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.stuck.push(format!("{what}: {error}")),
        }
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn processes_in(namespaces: &HashSet<(u64, u64)>) -> Result<Vec<Pid>> {
    if namespaces.is_empty() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir("/proc").context("cannot read /proc")?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|metadata| namespaces.contains(&identity(&metadata)))
        })
        .map(Pid::from_raw)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_lab_is_not_abandoned() {
        let own = own().unwrap();
        assert!(!is_abandoned(&format!("{own}-r1-node-1")));
    }

    #[test]
    fn the_same_process_number_started_at_another_time_is_another_lab() {
        let pid = std::process::id();
        assert!(is_abandoned(&format!("{PREFIX}{pid}-1-r1-node-1")));
    }

    #[test]
    fn foreign_names_are_left_alone() {
        assert!(!is_abandoned("cni-2f1c"));
        assert!(!is_abandoned("owlab-mine"));
    }
}
