//! A program that does nothing, on a hook: what is measured of it is what
//! running and measuring any program costs. Two instructions need no object
//! file, and aya loads nothing else; so the system call is made here.

use std::ffi::{c_int, c_long};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use aya::programs::TcAttachType;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

/// Its name.
pub(crate) const NAME: &str = "ow_bench_empty";

// Commands and types (include/uapi/linux/bpf.h).
const BPF_PROG_LOAD: c_int = 5;
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

/// Attaches one to a device of the calling thread's namespace, beside whatever
/// is there; it goes when the result is dropped.
pub(crate) fn attach(device: &str, side: TcAttachType) -> Result<OwnedFd> {
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
    bpf(BPF_LINK_CREATE, &link)
        .with_context(|| format!("attaching the empty program to {device} (Linux 6.6 can)"))
}

/// Attaches one to the tracepoint skb:kfree_skb; it goes when the result is dropped.
pub(crate) fn attach_to_drops() -> Result<OwnedFd> {
    let program = load(BPF_PROG_TYPE_RAW_TRACEPOINT)?;
    let tracepoint = Tracepoint {
        name_at: c"kfree_skb".as_ptr() as u64,
        program: u32::try_from(program.as_raw_fd())?,
        pad: 0,
    };
    bpf(BPF_RAW_TRACEPOINT_OPEN, &tracepoint)
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
    bpf(BPF_PROG_LOAD, &load).context("loading the empty program")
}

/// Calls bpf(2) for a command that returns a file descriptor.
fn bpf<T>(command: c_int, attributes: &T) -> Result<OwnedFd> {
    // SAFETY: the attributes are the command's, of the size that is told; what
    // they point to outlives the call.
    let result: c_long = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    let fd = c_int::try_from(Errno::result(result)?)?;
    // SAFETY: a descriptor that the kernel just gave, and nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
