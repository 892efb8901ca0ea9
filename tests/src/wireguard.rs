//! WireGuard devices, by the kernel's own interface (linux/wireguard.h): ip(8) makes
//! them and cannot give them keys.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};

use crate::netns::Netns;

/// The port that WireGuard is given where nobody chose another.
pub const PORT: u16 = 51820;

/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_ID` and
/// `CTRL_ATTR_FAMILY_NAME` (linux/genetlink.h).
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `WG_CMD_SET_DEVICE`.
const SET_DEVICE: u8 = 1;
/// `WGDEVICE_F_REPLACE_PEERS`.
const REPLACE_PEERS: u32 = 1;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// Bytes of `struct nlmsghdr` and `struct genlmsghdr`.
const HEADERS: usize = 20;

/// A key of Curve25519.
pub type Key = [u8; 32];

/// Two pairs of keys: what is secret, and what the other is told (RFC 7748).
pub const PAIRS: [(Key, Key); 2] = [
    (
        [0x40; 32],
        [
            0xd7, 0xb5, 0xe8, 0x1d, 0x33, 0x6e, 0x57, 0x8b, 0x13, 0xb8, 0xd7, 0x06, 0xe8, 0x2d,
            0x06, 0x1e, 0x30, 0x38, 0xc9, 0x6b, 0xce, 0x66, 0xcd, 0xcf, 0x50, 0xd5, 0x66, 0xb9,
            0x6d, 0xdb, 0xba, 0x10,
        ],
    ),
    (
        [0x41; 32],
        [
            0x7a, 0x1a, 0x4e, 0x70, 0x9b, 0xf0, 0x85, 0xac, 0x49, 0x4a, 0xba, 0x04, 0x69, 0xb9,
            0xb1, 0xed, 0xa0, 0xab, 0x1f, 0x78, 0xb1, 0x6a, 0xab, 0xb7, 0x9f, 0xfe, 0xda, 0x90,
            0x62, 0x3e, 0x85, 0x22,
        ],
    ),
];

/// The other end of a device.
#[derive(Clone, Copy, Debug)]
pub struct Remote {
    /// Its public key.
    pub key: Key,
    /// Where its packets go.
    pub endpoint: Ipv4Addr,
    /// The address behind it.
    pub behind: Ipv4Addr,
}

/// Gives a device its key and its only peer.
///
/// # Errors
/// When there is no such device.
pub fn configure(netns: &Netns, device: &str, secret: Key, remote: Remote) -> Result<()> {
    netns.enter(|| {
        let socket = Generic::open().context("cannot speak generic netlink")?;
        let family = socket.family("wireguard").context("the kernel has no WireGuard")?;
        let allowed = [
            attribute(1, &2_u16.to_ne_bytes()),
            attribute(2, &remote.behind.octets()),
            attribute(3, &[32]),
        ];
        // struct sockaddr_in: AF_INET, the port and the address in network order.
        let mut endpoint = 2_u16.to_ne_bytes().to_vec();
        endpoint.extend(PORT.to_be_bytes());
        endpoint.extend(remote.endpoint.octets());
        endpoint.extend([0; 8]);
        let peer = [
            attribute(1, &remote.key),
            attribute(4, &endpoint),
            attribute(9 | NESTED, &attribute(NESTED, &allowed.concat())),
        ];
        let name = [device.as_bytes(), &[0]].concat();
        let body = [
            attribute(2, &name),
            attribute(3, &secret),
            attribute(5, &REPLACE_PEERS.to_ne_bytes()),
            attribute(6, &PORT.to_ne_bytes()),
            attribute(8 | NESTED, &attribute(NESTED, &peer.concat())),
        ];
        socket.ask(family, SET_DEVICE, &body.concat())?;
        Ok(())
    })
}

/// An attribute (`struct nlattr`), padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A socket of generic netlink.
struct Generic(OwnedFd);

impl Generic {
    fn open() -> io::Result<Self> {
        // SAFETY: it takes numbers alone.
        let file = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_GENERIC) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just opened it for this caller alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(file) }))
    }

    /// The number of a family of messages.
    fn family(&self, name: &str) -> Result<u16> {
        let name = [name.as_bytes(), &[0]].concat();
        let answer = self.ask(CONTROL, GET_FAMILY, &attribute(FAMILY_NAME, &name))?;
        let mut rest = answer.get(HEADERS..).unwrap_or_default();
        while let Some([a, b, c, d, value @ ..]) = rest.get(..) {
            let length = usize::from(u16::from_ne_bytes([*a, *b]));
            if u16::from_ne_bytes([*c, *d]) == FAMILY_ID {
                let id = value.first_chunk().context("an empty number")?;
                return Ok(u16::from_ne_bytes(*id));
            }
            ensure!(length >= 4, "an attribute without a length");
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        anyhow::bail!("the family has no number")
    }

    /// Asks, and gives the first message of the answer: what was asked for, or an
    /// acknowledgement.
    fn ask(&self, kind: u16, command: u8, body: &[u8]) -> Result<Vec<u8>> {
        let length = u32::try_from(HEADERS + body.len())?;
        let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK)?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]);
        message.extend([command, 1, 0, 0]);
        message.extend(body);
        let file = self.0.as_raw_fd();
        // SAFETY: the pointer is to as many bytes as said.
        let sent = unsafe { libc::send(file, message.as_ptr().cast(), message.len(), 0) };
        ensure!(sent >= 0, "{}", io::Error::last_os_error());
        let mut answer = vec![0_u8; 8192];
        // SAFETY: as above, and the kernel writes no more than that.
        let got = unsafe { libc::recv(file, answer.as_mut_ptr().cast(), answer.len(), 0) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        answer.truncate(got);
        let is_error = answer.get(4..6) == Some(&2_u16.to_ne_bytes());
        let code = answer.get(16..20).and_then(<[u8]>::first_chunk).copied();
        let code = code.map_or(0, i32::from_ne_bytes);
        if is_error && code != 0 {
            return Err(io::Error::from_raw_os_error(code.saturating_neg()).into());
        }
        Ok(answer)
    }
}
