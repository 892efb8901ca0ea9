//! Where programs' links and maps are pinned, so that they outlive the agent:
//! a restart loses no count.
//!
//! `PIN/NETNS/vLAYOUT/` holds the maps by their names and links as
//! `link-IFINDEX-in`, `link-IFINDEX-out` and `link-drops`. A filter on clsact
//! cannot be pinned; an empty folder `clsact-IFINDEX-in` remembers it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};
use overlaywatch_ebpf::LAYOUT;

use super::hooks;
use crate::source::SourceError;

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Inode of the calling thread's network namespace.
pub(super) fn netns() -> Result<u32, SourceError> {
    let path = "/proc/thread-self/ns/net";
    let inode = fs::metadata(path)
        .map_err(|error| SourceError::io(format!("reading {path}"), error))?
        .ino();
    u32::try_from(inode).map_err(|_| SourceError::Malformed {
        what: path.to_owned(),
        reason: format!("inode {inode} is too large"),
    })
}

/// The folder of this namespace, made where it is missing; bpffs is mounted
/// where there is none yet.
pub(super) fn prepare(pin: &Path, netns: u32) -> Result<PathBuf, SourceError> {
    let base = pin.parent().unwrap_or(pin);
    if !is_bpffs(base) {
        mount_bpffs(base).map_err(|error| {
            SourceError::io(format!("mounting a BPF file system on {}", base.display()), error)
        })?;
    }
    let folder = pin.join(netns.to_string()).join(format!("v{LAYOUT}"));
    fs::create_dir_all(&folder)
        .map_err(|error| SourceError::io(format!("making {}", folder.display()), error))?;
    Ok(folder)
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

/// Removes everything that any agent pinned under `pin`: programs whose link is
/// gone are detached and freed by the kernel. How many things were removed.
///
/// # Errors
/// Names what cannot be removed.
pub fn detach(pin: &Path) -> Result<usize, SourceError> {
    let failed =
        |path: &Path, error| SourceError::io(format!("removing {}", path.display()), error);
    let entries = match fs::read_dir(pin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(|error| failed(pin, error))?,
    };
    let mut removed = 0;
    for entry in entries {
        let path = entry.map_err(|error| failed(pin, error))?.path();
        if path.is_dir() {
            if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
                hooks::detach_filter(name);
            }
            removed += detach(&path)?;
        } else {
            fs::remove_file(&path).map_err(|error| failed(&path, error))?;
            removed += 1;
        }
    }
    fs::remove_dir(pin).map_err(|error| failed(pin, error))?;
    Ok(removed)
}
