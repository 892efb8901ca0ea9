//! A program that does nothing, on a hook: what is measured of it is what
//! running and measuring any program costs. Two instructions need no object
//! file, and aya loads nothing else; so the system call is made here.

use std::ffi::{c_int, c_long};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use aya::programs::TcAttachType;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::filter::Filter;

/// Its name.
pub(crate) const NAME: &str = "ow_bench_empty";

// Commands and types (include/uapi/linux/bpf.h).
const BPF_PROG_LOAD: c_int = 5;
const BPF_OBJ_PIN: c_int = 6;
const BPF_RAW_TRACEPOINT_OPEN: c_int = 17;
const BPF_LINK_CREATE: c_int = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// `r0 = -1` (TC_ACT_UNSPEC: the next program decides) and `exit`, as struct bpf_insn.
const INSTRUCTIONS: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];

/// The head of union bpf_attr for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    program_type: u32,
    instructions: u32,
    instructions_at: u64,
    license_at: u64,
    log_level: u32,
    log_bytes: u32,
    log_at: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The head of union bpf_attr for `BPF_LINK_CREATE`.
#[repr(C)]
struct Link {
    program: u32,
    device: u32,
    attach_type: u32,
    flags: u32,
    relative_to: u32,
    pad: u32,
    expected_revision: u64,
}

/// The head of union bpf_attr for `BPF_RAW_TRACEPOINT_OPEN`.
#[repr(C)]
struct Tracepoint {
    name_at: u64,
    program: u32,
    pad: u32,
}

/// The head of union bpf_attr for `BPF_OBJ_PIN`.
#[repr(C)]
struct Pin {
    path_at: u64,
    program: u32,
    flags: u32,
}

/// An empty program on a hook; it goes when this is dropped.
pub(crate) enum Attached {
    /// By a link (Linux 6.6).
    Link { _link: OwnedFd },
    /// By a filter of clsact, as every kernel has it.
    Filter { _filter: Filter },
}

/// Attaches one to a device of the calling thread's namespace, beside whatever
/// is there.
pub(crate) fn attach(device: &str, side: TcAttachType) -> Result<Attached> {
    let program = load(BPF_PROG_TYPE_SCHED_CLS)?;
    let attach_type = if side == TcAttachType::Ingress { BPF_TCX_INGRESS } else { BPF_TCX_EGRESS };
    let link = Link {
        program: u32::try_from(program.as_raw_fd())?,
        device: if_nametoindex(device)?,
        attach_type,
        flags: 0,
        relative_to: 0,
        pad: 0,
        expected_revision: 0,
    };
    // SAFETY: the attributes of BPF_LINK_CREATE, which point to nothing.
    match unsafe { bpf(BPF_LINK_CREATE, &link) } {
        Ok(link) => Ok(Attached::Link { _link: into_descriptor(link) }),
        // What kernels say that do not know the type (kernel/bpf/syscall.c, link_create).
        Err(Errno::EINVAL) => Ok(Attached::Filter { _filter: filter(&program, device, side)? }),
        Err(error) => {
            Err(error).with_context(|| format!("attaching the empty program to {device}"))
        }
    }
}

/// tc(8) takes programs by their pins.
fn filter(program: &OwnedFd, device: &str, side: TcAttachType) -> Result<Filter> {
    let path = PathBuf::from(format!("/sys/fs/bpf/{NAME}-{}", std::process::id()));
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let pin = Pin {
        path_at: name.as_ptr() as u64,
        program: u32::try_from(program.as_raw_fd())?,
        flags: 0,
    };
    // SAFETY: the attributes of BPF_OBJ_PIN; the path outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &pin) }
        .with_context(|| format!("pinning the empty program as {}", path.display()))?;
    let filter = Filter::add(device, side, &path);
    std::fs::remove_file(&path)?;
    filter
}
/// Attaches one to the tracepoint skb:kfree_skb; it goes when the result is dropped.
pub(crate) fn attach_to_drops() -> Result<OwnedFd> {
    let program = load(BPF_PROG_TYPE_RAW_TRACEPOINT)?;
    let tracepoint = Tracepoint {
        name_at: c"kfree_skb".as_ptr() as u64,
        program: u32::try_from(program.as_raw_fd())?,
        pad: 0,
    };
    // SAFETY: the attributes of BPF_RAW_TRACEPOINT_OPEN; the name is static.
    unsafe { bpf(BPF_RAW_TRACEPOINT_OPEN, &tracepoint) }
        .map(into_descriptor)
        .context("attaching the empty program to the tracepoint skb:kfree_skb")
}

fn load(program_type: u32) -> Result<OwnedFd> {
    let mut name = [0; 16];
    name.iter_mut().zip(NAME.bytes()).for_each(|(to, byte)| *to = byte);
    let load = Load {
        program_type,
        instructions: u32::try_from(INSTRUCTIONS.len())?,
        instructions_at: INSTRUCTIONS.as_ptr() as u64,
        license_at: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_bytes: 0,
        log_at: 0,
        kernel_version: 0,
        flags: 0,
        name,
    };
    // SAFETY: the attributes of BPF_PROG_LOAD; what they point to is static.
    unsafe { bpf(BPF_PROG_LOAD, &load) }.map(into_descriptor).context("loading the empty program")
}

/// A descriptor that bpf(2) returned.
fn into_descriptor(fd: c_int) -> OwnedFd {
    // SAFETY: the kernel just gave it, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Calls bpf(2).
///
/// # Safety
/// The attributes are the command's, and what they point to outlives the call.
unsafe fn bpf<T>(command: c_int, attributes: &T) -> Result<c_int, Errno> {
    // SAFETY: as the caller promised; of the size that is told.
    let result: c_long = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    // Descriptors and zero are small.
    Errno::result(result).map(|value| c_int::try_from(value).unwrap_or_default())
}
