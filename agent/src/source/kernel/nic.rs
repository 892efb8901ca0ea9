//! What a device's own layer says: XDP programs on it (rtnetlink(7)), its driver
//! and offloads (ethtool(8), Documentation/networking/ethtool-netlink).

pub mod translate;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::DecodeError;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use overlaywatch_core::kernel::{ForeignProgram, HookedDevice};
use overlaywatch_core::model::{IfIndex, Nic};
use overlaywatch_core::time::{Mono, SECOND};

use self::translate::{DRIVER_BYTES, Driver};
use crate::clock;
use crate::source::SourceError;
use crate::source::ask::{Question, ask, attribute};
use crate::source::wire;

/// Offloads change by hand alone.
const EVERY_NS: u64 = 60 * SECOND;
/// `struct ifinfomsg`, bytes, and where the index is in it.
const IFINFO_BYTES: usize = 16;
const IFINFO_INDEX: usize = 4;
/// `IFLA_EXT_MASK`, and `RTEXT_FILTER_SKIP_STATS` (include/uapi/linux/if_link.h,
/// rtnetlink.h).
const EXT_MASK: u16 = 29;
const SKIP_STATS: u32 = 1 << 3;
/// `GENL_ID_CTRL` and `CTRL_CMD_GETFAMILY` with `CTRL_ATTR_FAMILY_NAME`
/// (include/uapi/linux/genetlink.h).
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_NAME: u16 = 2;
/// `ETHTOOL_MSG_FEATURES_GET`, `ETHTOOL_A_FEATURES_HEADER` and
/// `ETHTOOL_A_HEADER_DEV_INDEX` (include/uapi/linux/ethtool_netlink.h).
const GET_FEATURES: u8 = 11;
const HEADER: u16 = 1;
const DEVICE_INDEX: u16 = 1;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `ETHTOOL_GDRVINFO` (include/uapi/linux/ethtool.h).
const GET_DRIVER: u32 = 3;

/// XDP programs on a device.
///
/// # Errors
/// When the kernel does not tell, as of a device that is gone.
pub(super) fn xdp(device: &HookedDevice) -> Result<Vec<ForeignProgram>, SourceError> {
    let mut body = vec![0; IFINFO_BYTES];
    if let Some(place) = body.get_mut(IFINFO_INDEX..IFINFO_INDEX + 4) {
        place.copy_from_slice(&device.index.0.to_ne_bytes());
    }
    attribute(&mut body, EXT_MASK, &SKIP_STATS.to_ne_bytes());
    let question = Question {
        what: "asking for a device's XDP programs",
        protocol: NETLINK_ROUTE,
        kind: libc::RTM_GETLINK,
        is_dump: false,
        body: &body,
    };
    let mut found = Vec::new();
    ask(question, &mut wire::buffer(), |message| {
        if message.kind == libc::RTM_NEWLINK {
            found.extend(translate::xdp(message.payload)?);
        }
        Ok::<_, DecodeError>(())
    })?;
    let told = found.into_iter().map(|(kind, id)| ForeignProgram {
        device: device.name.clone(),
        is_ingress: true,
        kind: kind.to_owned(),
        id: Some(id),
        ..ForeignProgram::default()
    });
    Ok(told.collect())
}

/// Drivers and offloads, asked for now and then.
#[derive(Debug, Default)]
pub(super) struct Nics {
    /// The number of ethtool's family of messages; none where the kernel has none
    /// (before 5.6).
    family: Option<Option<u16>>,
    known: BTreeMap<IfIndex, (Nic, Mono)>,
}

impl Nics {
    /// What drives these devices.
    pub(super) fn of<'a>(&mut self, devices: impl Iterator<Item = &'a HookedDevice>) -> Vec<Nic> {
        let now = clock::mono();
        let mut known = std::mem::take(&mut self.known);
        let mut told = Vec::new();
        for device in devices {
            let fresh = known
                .remove(&device.index)
                .filter(|(nic, at)| nic.device == device.name && now.since(*at) < EVERY_NS);
            let (nic, at) = fresh.unwrap_or_else(|| (self.read(device), now));
            told.push(nic.clone());
            self.known.insert(device.index, (nic, at));
        }
        told
    }

    fn read(&mut self, device: &HookedDevice) -> Nic {
        let Driver { name, version, firmware } = driver(&device.name).unwrap_or_default();
        let family = *self.family.get_or_insert_with(|| family().unwrap_or_default());
        Nic {
            device: device.name.clone(),
            driver: name,
            version,
            firmware,
            offloads: family.and_then(|family| offloads(family, device.index).ok()),
        }
    }
}

/// The number of ethtool's family of messages.
fn family() -> Result<Option<u16>, SourceError> {
    // struct genlmsghdr: command, version, reserved.
    let mut body = vec![GET_FAMILY, 1, 0, 0];
    attribute(&mut body, FAMILY_NAME, b"ethtool\0");
    let mut number = None;
    ask(
        generic("asking for ethtool's messages", CONTROL, &body),
        &mut wire::buffer(),
        |message| {
            number = number.or(translate::family(message.payload));
            Ok::<_, Infallible>(())
        },
    )?;
    Ok(number)
}

fn offloads(family: u16, index: IfIndex) -> Result<Vec<String>, SourceError> {
    let mut header = Vec::new();
    attribute(&mut header, DEVICE_INDEX, &index.0.to_ne_bytes());
    let mut body = vec![GET_FEATURES, 1, 0, 0];
    attribute(&mut body, HEADER | NESTED, &header);
    let mut on = Vec::new();
    ask(
        generic("asking for a device's offloads", family, &body),
        &mut wire::buffer(),
        |message| {
            on.extend(translate::offloads(message.payload)?);
            Ok::<_, DecodeError>(())
        },
    )?;
    on.sort_unstable();
    Ok(on)
}

const fn generic<'a>(what: &'static str, kind: u16, body: &'a [u8]) -> Question<'a> {
    Question { what, protocol: NETLINK_GENERIC, kind, is_dump: false, body }
}

/// `struct ifreq` with a pointer (netdevice(7)).
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut [u8; DRIVER_BYTES],
    rest: [u8; 16],
}

fn driver(device: &str) -> io::Result<Driver> {
    let kind = SockType::Datagram;
    let socket: OwnedFd = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
    let mut answer = [0; DRIVER_BYTES];
    if let Some(command) = answer.first_chunk_mut() {
        *command = GET_DRIVER.to_ne_bytes();
    }
    let mut name = [0; libc::IFNAMSIZ];
    for (place, byte) in name.iter_mut().zip(device.bytes().take(libc::IFNAMSIZ - 1)) {
        *place = byte;
    }
    let mut request = Request { name, data: &raw mut answer, rest: [0; 16] };
    // SAFETY: the request is at least as long as the kernel's `struct ifreq` and
    // laid out like it; its pointer is to a `struct ethtool_drvinfo`'s bytes, which
    // outlive the call, and the command says that no more is written.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(translate::driver(&answer))
}
