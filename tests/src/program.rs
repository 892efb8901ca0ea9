//! Somebody else's eBPF programs on a node's NIC: XDP programs, as load balancers
//! and protections against floods have them, and classifiers with a name, as CNI
//! plugins have them.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::classifier;
use crate::netns::Netns;
use crate::pins::DIRECTORY;

/// The NIC of every node.
const DEVICE: &str = "eth0";
/// The name of the XDP program.
const GUARD: &str = "guard_overlay";

/// `BPF_PROG_LOAD` and `BPF_OBJ_PIN`, `BPF_PROG_TYPE_SCHED_CLS` and
/// `BPF_PROG_TYPE_XDP` (include/uapi/linux/bpf.h).
const LOAD: libc::c_int = 5;
const PIN: libc::c_int = 6;
const CLASSIFIER: u32 = 3;
const XDP: u32 = 6;
/// `XDP_DROP` and `XDP_PASS`.
const DROP: i32 = 1;
const PASS: i32 = 2;
/// `TC_ACT_UNSPEC`: the next filter is asked.
const NEXT: i32 = -1;

/// One instruction (Documentation/bpf/standardization/instruction-set.rst).
type Instruction = [u8; 8];

/// How an XDP program is attached, as ip-link(8) takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By the kernel, when there is a packet already.
    Generic,
    /// By the driver, before there is one.
    Native,
}

impl Mode {
    const fn word(self) -> &'static str {
        match self {
            Self::Generic => "xdpgeneric",
            Self::Native => "xdpdrv",
        }
    }
}

/// Drops UDP packets to `port` that come in on the node's NIC, until [`pass`] is
/// called.
///
/// # Errors
/// Without CAP_SYS_ADMIN, or where the device has a program.
pub fn drop_udp(netns: &Netns, mode: Mode, port: u16) -> Result<()> {
    attach(netns, mode, &udp_to(port))
}

/// The same of packets of an IP protocol.
///
/// # Errors
/// As [`drop_udp`].
pub fn drop_protocol(netns: &Netns, mode: Mode, protocol: u8) -> Result<()> {
    attach(netns, mode, &of_protocol(protocol))
}

fn attach(netns: &Netns, mode: Mode, program: &[u8]) -> Result<()> {
    let pinned = Pinned::load(netns, XDP, GUARD, program)?;
    let path = pinned.path.display();
    netns.ip(&format!("link set dev {DEVICE} {} pinned {path}\n", mode.word()))
}

/// Undoes [`drop_udp`].
///
/// # Errors
/// When nothing was attached in that way.
pub fn pass(netns: &Netns, mode: Mode) -> Result<()> {
    netns.ip(&format!("link set dev {DEVICE} {} off\n", mode.word()))
}

/// Attaches a classifier of this name that lets all pass: at `side` ("ingress" or
/// "egress"), before those with a higher preference.
///
/// # Errors
/// Without CAP_SYS_ADMIN, or on a kernel without clsact.
pub fn classify(netns: &Netns, side: &str, preference: u16, name: &str) -> Result<()> {
    classifier::prepare(netns)?;
    let all = [instruction(0xb7, 0, 0, NEXT), EXIT].concat();
    let pinned = Pinned::load(netns, CLASSIFIER, name, &all)?;
    let path = pinned.path.display();
    netns.tc(&format!(
        "filter add dev {DEVICE} {side} pref {preference} bpf direct-action object-pinned {path}\n"
    ))
}

/// Takes a classifier off again.
///
/// # Errors
/// When there is none.
pub fn declassify(netns: &Netns, side: &str, preference: u16) -> Result<()> {
    netns.tc(&format!("filter del dev {DEVICE} {side} pref {preference}\n"))
}

/// A program that its name in the file system holds, until this is dropped; what
/// it is attached to holds it further.
struct Pinned {
    path: PathBuf,
}

impl Pinned {
    fn load(netns: &Netns, kind: u32, name: &str, program: &[u8]) -> Result<Self> {
        let folder = Path::new(DIRECTORY).join(format!("{}-programs", netns.name()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(name);
        let file = load(kind, name, program).with_context(|| format!("cannot load {name}"))?;
        pin(&file, &path).with_context(|| format!("cannot pin {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What cannot be removed now is found by the next lab's clean-up.
        let _ = fs::remove_file(&self.path);
        let _ = self.path.parent().map(fs::remove_dir);
    }
}

/// The members for loading of `union bpf_attr`, as far as they are needed.
#[repr(C)]
#[derive(Default)]
struct LoadRequest {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

fn load(kind: u32, name: &str, program: &[u8]) -> io::Result<OwnedFd> {
    let mut request = LoadRequest {
        kind,
        count: u32::try_from(program.len() / size_of::<Instruction>()).unwrap_or(u32::MAX),
        instructions: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..LoadRequest::default()
    };
    for (place, byte) in request.name.iter_mut().zip(name.bytes().take(15)) {
        *place = byte;
    }
    // SAFETY: the structure is laid out as the kernel's and as long as said; its
    // pointers are to the instructions that `count` counts and to a text.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, LOAD, &raw mut request, size_of::<LoadRequest>()) };
    let file = i32::try_from(result).ok().filter(|file| *file >= 0);
    let file = file.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just opened it for this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

/// The members for pinning.
#[repr(C)]
struct PinRequest {
    path: u64,
    file: u32,
    flags: u32,
}

fn pin(file: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let file = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    let mut request = PinRequest { path: path.as_ptr() as u64, file, flags: 0 };
    // SAFETY: the structure is laid out as the kernel's and as long as said; its
    // pointer is to a text that outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, PIN, &raw mut request, size_of::<PinRequest>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const fn instruction(code: u8, registers: u8, offset: i16, value: i32) -> Instruction {
    let ([a, b], [c, d, e, f]) = (offset.to_le_bytes(), value.to_le_bytes());
    [code, registers, a, b, c, d, e, f]
}

const EXIT: Instruction = instruction(0x95, 0, 0, 0);

/// Drops IPv4 packets of a protocol. Registers as in [`udp_to`].
fn of_protocol(protocol: u8) -> Vec<u8> {
    [
        instruction(0x61, 0x12, 0, 0),
        instruction(0x61, 0x13, 4, 0),
        // Headers of Ethernet and IP, else pass.
        instruction(0xbf, 0x24, 0, 0),
        instruction(0x07, 0x04, 0, 34),
        instruction(0x2d, 0x34, 5, 0),
        instruction(0x69, 0x24, 12, 0),
        instruction(0x55, 0x04, 3, i32::from(0x0800_u16.to_be())),
        instruction(0x71, 0x24, 23, 0),
        instruction(0x55, 0x04, 1, i32::from(protocol)),
        instruction(0x05, 0, 2, 0),
        instruction(0xb7, 0, 0, PASS),
        EXIT,
        instruction(0xb7, 0, 0, DROP),
        EXIT,
    ]
    .concat()
}

/// Drops IPv4 packets without options to a UDP port. Registers are written as
/// the source's number times sixteen, and the destination's.
fn udp_to(port: u16) -> Vec<u8> {
    [
        // r2 and r3: where the packet begins and ends.
        instruction(0x61, 0x12, 0, 0),
        instruction(0x61, 0x13, 4, 0),
        // Headers of Ethernet, IP and UDP, else pass.
        instruction(0xbf, 0x24, 0, 0),
        instruction(0x07, 0x04, 0, 42),
        instruction(0x2d, 0x34, 7, 0),
        // EtherType, protocol, port; in the packet's order of bytes.
        instruction(0x69, 0x24, 12, 0),
        instruction(0x55, 0x04, 5, i32::from(0x0800_u16.to_be())),
        instruction(0x71, 0x24, 23, 0),
        instruction(0x55, 0x04, 3, 17),
        instruction(0x69, 0x24, 36, 0),
        instruction(0x55, 0x04, 1, i32::from(port.to_be())),
        instruction(0x05, 0, 2, 0),
        instruction(0xb7, 0, 0, PASS),
        EXIT,
        instruction(0xb7, 0, 0, DROP),
        EXIT,
    ]
    .concat()
}
