//! Where programs' links and maps are pinned, so that they outlive the agent:
//! a restart loses no count.
//!
//! `PIN/NETNS/vLAYOUT/` holds the maps by their names and links as
//! `link-IFINDEX-in`, `link-IFINDEX-out` and `link-drops`; `PIN/NETNS/` what
//! [`super::clsact`] remembers. Whoever works there holds a lock on `PIN/NETNS`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};
use overlaywatch_core::model::IfIndex;
use overlaywatch_ebpf::LAYOUT;

use super::clsact;
use super::netns;
use crate::source::SourceError;

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// What links to devices begin with.
pub(super) const LINK: &str = "link-";
/// What folders that remember something of clsact begin with.
pub(super) const CLSACT: &str = "clsact-";

/// The pins of one network namespace, held by this process alone.
#[derive(Debug)]
pub(super) struct Pins {
    home: PathBuf,
    folder: PathBuf,
    _lock: Flock<File>,
}

impl Pins {
    /// The pins of a namespace; folders are made where they are missing, and
    /// bpffs is mounted where there is none yet.
    pub(super) fn open(pin: &Path, netns: u32) -> Result<Self, SourceError> {
        let base = pin.parent().unwrap_or(pin);
        if !is_bpffs(pin) {
            mount_bpffs(base).map_err(|error| {
                let what = format!("mounting a BPF file system on {}", base.display());
                SourceError::pins(what, error)
            })?;
        }
        let home = pin.join(netns.to_string());
        let folder = home.join(format!("v{LAYOUT}"));
        fs::create_dir_all(&folder)
            .map_err(|error| SourceError::pins(format!("making {}", folder.display()), error))?;
        let lock = lock(&home)?;
        Ok(Self { home, folder, _lock: lock })
    }

    /// Whatever version of the programs it belongs to.
    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    /// Maps and links of this version.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Devices that something is remembered of.
    pub(super) fn indexes(&self) -> BTreeSet<IfIndex> {
        let devices =
            |folder, prefix| names(folder).filter_map(move |name| index_of(&name, prefix));
        devices(&self.folder, LINK).chain(devices(&self.home, CLSACT)).collect()
    }

    /// Removes what programs of other versions have pinned: they would count
    /// for nobody.
    pub(super) fn forget_other_versions(&self) {
        for name in names(&self.home) {
            let path = self.home.join(&name);
            if name.starts_with('v') && path != self.folder {
                let _ = remove_all(&path);
            }
        }
    }
}

/// The device in the name of a link or of what clsact remembers.
fn index_of(name: &str, prefix: &str) -> Option<IfIndex> {
    let (index, _) = name.strip_prefix(prefix)?.split_once('-')?;
    index.parse().ok().map(IfIndex)
}

fn names(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// The lock of a namespace's pins. It goes with the process that holds it.
fn lock(home: &Path) -> Result<Flock<File>, SourceError> {
    let failed = |error| SourceError::pins(format!("locking {}", home.display()), error);
    let folder = File::open(home).map_err(failed)?;
    Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => SourceError::Busy { pins: home.display().to_string() },
        error => failed(error.into()),
    })
}

fn is_bpffs(path: &Path) -> bool {
    // The closest folder that is there.
    let there = path.ancestors().find(|ancestor| ancestor.exists());
    there.is_some_and(|there| {
        statfs(there).is_ok_and(|stat| stat.filesystem_type() == FsType(BPF_FS_MAGIC))
    })
}

fn mount_bpffs(on: &Path) -> io::Result<()> {
    fs::create_dir_all(on)?;
    Ok(mount(Some("bpf"), on, Some("bpf"), MsFlags::empty(), Some("mode=0700"))?)
}

/// Removes everything that any agent left under `pin`, in all network
/// namespaces: programs whose link is gone are detached and freed by the
/// kernel. How many things were removed.
///
/// # Errors
/// While an agent runs that would attach again, before anything is removed;
/// else names what cannot be removed.
pub fn detach(pin: &Path) -> Result<usize, SourceError> {
    let homes: Vec<PathBuf> = names(pin).map(|name| pin.join(name)).collect();
    let homes = homes.into_iter().filter(|home| home.is_dir());
    let locked = homes.map(|home| Ok((lock(&home)?, home))).collect::<Result<Vec<_>, _>>()?;
    let mut removed = 0;
    for (_, home) in &locked {
        removed += detach_filters(home) + remove_all(home)?;
    }
    match fs::remove_dir(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            // A mount point stays.
            let is_mounted = error.raw_os_error() == Some(libc::EBUSY);
            if is_mounted { Ok(removed) } else { Err(cannot_remove(pin, error)) }
        }
        _ => Ok(removed),
    }
}

/// Takes filters off devices, in the namespace that the folder stands for. Where
/// that is gone, they went with it.
fn detach_filters(home: &Path) -> usize {
    let indexes: BTreeSet<IfIndex> =
        names(home).filter_map(|name| index_of(&name, CLSACT)).collect();
    let inode = home.file_name().and_then(|name| name.to_str()?.parse().ok());
    let (Some(inode), false) = (inode, indexes.is_empty()) else { return 0 };
    netns::inside(inode, || indexes.into_iter().map(|index| clsact::release(home, index)).sum())
        .unwrap_or(0)
}

/// Removes a folder with all that is in it; how many pins that were.
fn remove_all(folder: &Path) -> Result<usize, SourceError> {
    let failed = |error| cannot_remove(folder, error);
    let mut removed = 0;
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            removed += remove_all(&path)?;
        } else {
            remove(&path)?;
            removed += 1;
        }
    }
    fs::remove_dir(folder).map_err(failed)?;
    Ok(removed)
}

/// Removes a pin, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), SourceError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(cannot_remove(path, error)),
        _ => Ok(()),
    }
}

fn cannot_remove(path: &Path, error: io::Error) -> SourceError {
    SourceError::pins(format!("removing {}", path.display()), error)
}
