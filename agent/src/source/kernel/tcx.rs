//! Programs attached as tcx links (Linux 6.6), which are pinned: they stay when
//! the agent ends, and the next agent puts its programs into them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier};
use overlaywatch_core::kernel::HookedDevice;
use overlaywatch_core::model::IfIndex;

use super::pins::{self, LINK};
use super::side::{self, Place, Side};
use crate::source::SourceError;

/// `BPF_PROG_QUERY` (include/uapi/linux/bpf.h).
const PROG_QUERY: libc::c_int = 16;
/// Programs that one side of a device can have (`BPF_MPROG_MAX`).
const MOST_PROGRAMS: u32 = 64;

/// How often it is tried to attach while an old link still goes, and how long
/// to wait between.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(5);

/// What `BPF_PROG_QUERY` takes: the member `query` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    pad: u32,
    program_attach_flags: u64,
    links: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Numbers of the programs on one side of a device, in the order in which they
/// run. By system call, since aya opens each program to describe it, which
/// takes CAP_SYS_ADMIN.
fn programs(index: IfIndex, side: Side) -> io::Result<Vec<u32>> {
    let mut numbers = [0_u32; MOST_PROGRAMS as usize];
    let mut query = Query {
        ifindex: index.0,
        // BPF_TCX_INGRESS and BPF_TCX_EGRESS.
        attach_type: match side {
            Side::In => 46,
            Side::Out => 47,
        },
        programs: numbers.as_mut_ptr() as u64,
        count: MOST_PROGRAMS,
        ..Query::default()
    };
    // SAFETY: the structure is laid out as the kernel's and as long as said;
    // its one pointer is to an array of as many numbers as `count` says.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let count = usize::try_from(query.count).unwrap_or(0);
    Ok(numbers.get(..count).unwrap_or(&numbers).to_vec())
}

/// Where our program is on one side of a device.
pub(super) fn place(
    ebpf: &mut Ebpf,
    device: &HookedDevice,
    side: Side,
) -> Result<Place<u32>, SourceError> {
    let what = || format!("asking what is attached to {}", device.name);
    let program = side::program(ebpf, device, side)?;
    let ours = program.info().map_err(|error| SourceError::kernel(what(), &error))?.id();
    let all = programs(device.index, side).map_err(|error| SourceError::io(what(), error))?;
    Ok(side.place(&all, &ours))
}

/// Numbers of the programs on one side of a device that are not ours.
pub(super) fn others(
    ebpf: &mut Ebpf,
    device: &HookedDevice,
    side: Side,
) -> Result<Vec<u32>, SourceError> {
    let what = || format!("asking what is attached to {}", device.name);
    let program = side::program(ebpf, device, side)?;
    let ours = program.info().map_err(|error| SourceError::kernel(what(), &error))?.id();
    let mut all = programs(device.index, side).map_err(|error| SourceError::io(what(), error))?;
    all.retain(|id| *id != ours && *id != 0);
    Ok(all)
}

/// Attaches one program; whether it took over from an earlier run without a gap.
pub(super) fn attach(
    folder: &Path,
    ebpf: &mut Ebpf,
    device: &HookedDevice,
    side: Side,
) -> Result<bool, SourceError> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        SourceError::kernel(format!("attaching to {} ({})", device.name, side.slug()), error)
    };
    let path = path(folder, device.index, side);
    let program = side::program(ebpf, device, side)?;
    if take_over(program, &path) && place(ebpf, device, side)? != Place::Gone {
        return Ok(true);
    }
    pins::remove(&path)?;
    let program = side::program(ebpf, device, side)?;
    let link = attach_anew(program, device, side).map_err(|e| failed(&e))?;
    let link = program.take_link(link).map_err(|e| failed(&e))?;
    FdLink::try_from(link).map_err(|e| failed(&e))?.pin(&path).map_err(|e| failed(&e))?;
    Ok(false)
}

/// A new link. One that was unpinned just now still holds the program for a
/// moment, since the kernel lets go of links in the background
/// (bpf_link_put, kernel/bpf/syscall.c).
fn attach_anew(
    program: &mut SchedClassifier,
    device: &HookedDevice,
    side: Side,
) -> Result<SchedClassifierLinkId, ProgramError> {
    let mut attempts = ATTEMPTS;
    loop {
        let order = match side {
            Side::In => LinkOrder::first(),
            Side::Out => LinkOrder::last(),
        };
        let options = TcAttachOptions::TcxOrder(order);
        attempts -= 1;
        match program.attach_with_options(&device.name, side.attach_type(), options) {
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::EEXIST) && attempts > 0 =>
            {
                thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

/// Puts the program into the link that an earlier run pinned, at once. A link
/// whose device is gone or that was detached takes none.
fn take_over(program: &mut SchedClassifier, path: &Path) -> bool {
    let link = PinnedLink::from_pin(path).ok().map(FdLink::from);
    let link = link.and_then(|link| SchedClassifierLink::try_from(link).ok());
    let Some(id) = link.and_then(|link| program.attach_to_link(link).ok()) else { return false };
    // The pin keeps it from here on.
    drop(program.take_link(id));
    true
}

/// Takes our programs off a device.
pub(super) fn release(folder: &Path, index: IfIndex) {
    for side in Side::BOTH {
        // The kernel detaches a link that nobody holds any more.
        let _ = fs::remove_file(path(folder, index, side));
    }
}

fn path(folder: &Path, index: IfIndex, side: Side) -> PathBuf {
    folder.join(format!("{LINK}{}-{}", index.0, side.slug()))
}
