//! Whether a device leaves checksums to its hardware, as `ethtool -K` sets it. A
//! veth pair has none, and so hands on packets whose checksum nobody has computed
//! and nobody looks at.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};

use crate::netns::Netns;

/// `ETHTOOL_SRXCSUM` and `ETHTOOL_STXCSUM` (include/uapi/linux/ethtool.h).
const SET_RECEIVED: u32 = 0x15;
const SET_SENT: u32 = 0x17;

/// `struct ifreq` with a pointer (netdevice(7)).
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut Value,
    rest: [u8; 16],
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Switches both of a device's checksums to the hardware, or to the CPU.
///
/// # Errors
/// Without CAP_NET_ADMIN in the namespace, or without such a device.
pub fn checksums(netns: &Netns, device: &str, by_hardware: bool) -> Result<()> {
    netns.enter(|| {
        for command in [SET_RECEIVED, SET_SENT] {
            set(device, command, by_hardware.into())
                .with_context(|| format!("cannot switch checksums of {device}"))?;
        }
        Ok(())
    })
}

fn set(device: &str, command: u32, data: u32) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut value = Value { command, data };
    let mut name = [0; libc::IFNAMSIZ];
    for (place, byte) in name.iter_mut().zip(device.bytes().take(libc::IFNAMSIZ - 1)) {
        *place = byte;
    }
    let mut request = Request { name, data: &raw mut value, rest: [0; 16] };
    // SAFETY: the request is at least as long as the kernel's `struct ifreq` and
    // laid out like it; its pointer is to what these commands read.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
