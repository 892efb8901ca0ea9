//! ICMP echo: answered by the peer's kernel, it tells a silent agent from a
//! silent network.
//!
//! The echo's data are the epoch (8 bytes), the whole sequence number (4; the
//! ICMP header has room for its lower half only) and the time of sending (8),
//! all of which the peer's kernel sends back.
//!
//! How a message is read and written is public for fuzzing; nobody outside the
//! prober has a use for it.

use std::io;

use socket2::{Domain, Protocol, Type};

use super::socket::Socket;

const ECHO_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// ICMP_FILTER (linux/icmp.h), which the libc crate lacks.
const ICMP_FILTER: libc::c_int = 1;
/// ICMPV6_FILTER (linux/icmpv6.h), which the libc crate lacks.
const ICMPV6_FILTER: libc::c_int = 1;
/// Bytes of an ICMP echo's header, before its data.
pub(super) const HEADER_BYTES: usize = 8;

/// An echo socket of one family.
#[derive(Debug)]
pub(super) struct Echo {
    pub(super) socket: Socket,
    pub(super) form: Form,
}

/// How its messages look.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    v6: bool,
    /// Set for a raw socket, which hears the replies to everybody's echoes;
    /// for a ping socket the kernel chooses the identifier and matches it.
    raw_id: Option<u16>,
    epoch: u64,
}

/// An echo reply to this prober.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EchoReply {
    /// The whole sequence number.
    pub seq: u32,
    /// When the request was sent, nanoseconds of the monotonic clock.
    pub sent_at: u64,
}

impl Echo {
    /// A ping socket where net.ipv4.ping_group_range allows it, else a raw
    /// socket, which takes CAP_NET_RAW (icmp(7), raw(7)).
    pub(super) fn open(domain: Domain, epoch: u64) -> io::Result<Self> {
        let v6 = domain == Domain::IPV6;
        let protocol = if v6 { Protocol::ICMPV6 } else { Protocol::ICMPV4 };
        let echo = match Socket::new(domain, Type::DGRAM, protocol) {
            Ok(socket) => Self { socket, form: Form::new(v6, false, epoch) },
            Err(_) => {
                let socket = Socket::new(domain, Type::RAW, protocol)?;
                hear_replies_only(&socket, v6)?;
                Self { socket, form: Form::new(v6, true, epoch) }
            }
        };
        echo.socket.keep_errors(domain)?;
        Ok(echo)
    }
}

/// Raw sockets get every ICMP message of the host unless filtered; a set bit
/// keeps a type out.
fn hear_replies_only(socket: &Socket, v6: bool) -> io::Result<()> {
    if v6 {
        let mut mask = [u32::MAX; 8];
        mask[usize::from(ECHO_REPLY_V6) / 32] &= !(1 << (ECHO_REPLY_V6 % 32));
        let bytes: Vec<u8> = mask.iter().flat_map(|word| word.to_ne_bytes()).collect();
        socket.set_bytes(libc::SOL_ICMPV6, ICMPV6_FILTER, &bytes)
    } else {
        let mask = !(1_u32 << ECHO_REPLY_V4);
        socket.set_bytes(libc::SOL_RAW, ICMP_FILTER, &mask.to_ne_bytes())
    }
}

impl Form {
    /// Of a `raw` socket or a ping socket; the run's epoch tells its echoes
    /// from those of others.
    #[must_use]
    pub fn new(v6: bool, raw: bool, epoch: u64) -> Self {
        let [.., high, low] = epoch.to_be_bytes();
        Self { v6, raw_id: raw.then_some(u16::from_be_bytes([high, low])), epoch }
    }

    /// Writes an echo request with at least `data_bytes` of data.
    pub fn write(self, seq: u32, sent_at: u64, data_bytes: usize, out: &mut Vec<u8>) {
        let [.., high, low] = seq.to_be_bytes();
        let kind = if self.v6 { ECHO_V6 } else { ECHO_V4 };
        let [id_high, id_low] = self.raw_id.unwrap_or(0).to_be_bytes();
        out.clear();
        out.extend_from_slice(&[kind, 0, 0, 0, id_high, id_low, high, low]);
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&seq.to_be_bytes());
        out.extend_from_slice(&sent_at.to_be_bytes());
        out.resize(out.len().max(HEADER_BYTES + data_bytes), 0);
        if self.raw_id.is_some() && !self.v6 {
            // For every other kind of socket the kernel does it.
            let sum = checksum(out);
            out[2..4].copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// Reads a packet; none unless it answers an echo of this prober.
    #[must_use]
    pub fn read(self, packet: &[u8]) -> Option<EchoReply> {
        let message = if self.raw_id.is_some() && !self.v6 {
            // A raw IPv4 socket delivers the IP header too.
            let words = packet.first()? & 0x0f;
            packet.get(usize::from(words) * 4..)?
        } else {
            packet
        };
        let (header, data) = message.split_first_chunk::<HEADER_BYTES>()?;
        let (epoch, data) = data.split_first_chunk()?;
        let (seq, data) = data.split_first_chunk()?;
        let sent_at = u64::from_be_bytes(*data.first_chunk()?);
        let kind = if self.v6 { ECHO_REPLY_V6 } else { ECHO_REPLY_V4 };
        let is_own = self.raw_id.is_none_or(|id| header[4..6] == id.to_be_bytes())
            && u64::from_be_bytes(*epoch) == self.epoch;
        let matches = header[0] == kind && header[6..] == seq[2..];
        (is_own && matches).then_some(EchoReply { seq: u32::from_be_bytes(*seq), sent_at })
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Folded above: it fits.
    !u16::try_from(sum).unwrap_or(u16::MAX)
}
