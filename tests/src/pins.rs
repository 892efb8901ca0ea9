//! Where agents pin their eBPF programs. They leave them pinned on purpose when
//! they end, so each node has a folder of its own that goes with its cluster.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Where a BPF file system is mounted.
const BPFFS: &str = "/sys/fs/bpf";
/// What all labs keep there.
pub(crate) const DIRECTORY: &str = "/sys/fs/bpf/overlaywatch-lab";

/// One node's folder; gone with all that is pinned there when this is dropped.
#[derive(Debug)]
pub struct Pins(PathBuf);

impl Pins {
    /// The folder of the node whose namespace has this name. The agent makes it.
    ///
    /// # Errors
    /// When no BPF file system can be mounted although the kernel has one.
    pub fn of(namespace: &str) -> Result<Self> {
        prepare().with_context(|| format!("cannot mount a BPF file system on {BPFFS}"))?;
        Ok(Self(Path::new(DIRECTORY).join(namespace)))
    }

    /// Takes away all that is pinned there, as a reboot does.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn clear(&self) -> Result<()> {
        match fs::remove_dir_all(&self.0) {
            // Nothing was pinned.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done.with_context(|| format!("cannot remove {}", self.0.display())),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // What cannot be removed now is found by the next lab's clean-up.
        let _ = fs::remove_dir_all(&self.0);
        let _ = fs::remove_dir(DIRECTORY);
    }
}

/// Mounts the file system where the system did not, and before agents do it
/// side by side: the second mount would hide what is pinned on the first.
fn prepare() -> Result<()> {
    // A kernel without BPF has no such directory, and its agents pin nothing.
    let Ok(directory) = File::open(BPFFS) else { return Ok(()) };
    let _alone = Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    if statfs(BPFFS)?.filesystem_type() != BPF_FS_MAGIC {
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))?;
    }
    Ok(())
}
