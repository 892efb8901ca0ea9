//! The packets that are sent, and how they are known again.
//!
//! Each is what its encapsulation would put on the wire, and harmless where it
//! arrives:
//! - VXLAN and Geneve carry a VNI that nobody has and a foreign MAC address, so
//!   that a kernel which has the port drops them (`VXLAN_VNI_NOT_FOUND`, or as
//!   another host's where it takes any VNI).
//! - WireGuard's is a data packet of a session that nobody has.
//! - The packet inside IPIP goes to the node that the outer one goes to, with a
//!   TTL of 1: it is forwarded to nobody. Inner packets go to UDP port 9, discard.
//! - Where nobody listens the kernel answers with an ICMP error to the sender.
//!
//! The last 16 bytes of every packet are its mark, integers in network byte
//! order: `OWPF`, the nonce (8), method, size, round, and 1 on the way back
//! from the end that serves. At the end it stands at the same place in all of
//! them, so that a socket filter of five instructions finds it.

use std::net::Ipv4Addr;

use super::{Method, ROUNDS, Size};

/// What a mark and a frame begin with.
pub const MAGIC: [u8; 4] = *b"OWPF";
/// Bytes of a mark.
pub const MARK_BYTES: usize = 16;
/// Outer bytes of a small packet.
pub const SMALL_BYTES: u16 = 128;

const IP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const UDP: u8 = 17;
const IPIP: u8 = 4;
const TTL: u8 = 64;
/// Flag DF, RFC 791.
const DO_NOT_FRAGMENT: u16 = 0x4000;
/// The discard service (RFC 863).
const DISCARD: u16 = 9;
/// Where source ports begin; each direction, method and round has one of its
/// own, so that no filter takes one direction for the answer to the other.
const SOURCE_PORTS: u16 = 47_000;
/// The highest VNI but one: 24 bits.
const VNI: [u8; 3] = [0xff, 0xff, 0xfe];
/// Locally administered addresses that no device has.
const MACS: [u8; 12] = [0x02, b'O', b'W', b'P', b'F', 2, 0x02, b'O', b'W', b'P', b'F', 1];
const IPV4_ETHERTYPE: [u8; 2] = [0x08, 0x00];
/// Transparent Ethernet bridging, what Geneve carries (RFC 8926).
const ETHERNET: [u8; 2] = [0x65, 0x58];
/// A session index that no WireGuard peer gave out, but by a chance of 2^-32.
const WIREGUARD_SESSION: [u8; 4] = *b"OWPF";

/// Which packet it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The run's random number.
    pub nonce: u64,
    /// How it is encapsulated.
    pub method: Method,
    /// Its size.
    pub size: Size,
    /// Its round, below [`ROUNDS`].
    pub round: u8,
    /// Whether the end that serves sent it.
    pub back: bool,
}

/// Between whom it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The sender's underlay address.
    pub from: Ipv4Addr,
    /// The receiver's underlay address.
    pub to: Ipv4Addr,
    /// An address of the sender's pod network and one of the receiver's.
    pub pods: Option<(Ipv4Addr, Ipv4Addr)>,
}

/// Writes a packet from the outer IP header on, of `bytes` or as many as it
/// needs. None for plain pod addresses that are not known.
#[must_use]
pub fn build(ends: &Ends, mark: Mark, bytes: u16) -> Option<Vec<u8>> {
    let (from, to) = (ends.from, ends.to);
    let source = SOURCE_PORTS
        + u16::from(mark.back) * 256
        + u16::from(mark.round) * 8
        + u16::from(mark.method as u8);
    let content = |overhead: usize| {
        let content = usize::from(bytes).saturating_sub(overhead + MARK_BYTES);
        let mut content = vec![0; content];
        content.extend(mark.bytes());
        content
    };
    let inner = |overhead: usize, ttl: u8| {
        let datagram = udp(from, to, source, DISCARD, &content(overhead + IP_BYTES + UDP_BYTES));
        ip(from, to, UDP, ttl, &datagram)
    };
    let framed = |head: [u8; 8]| {
        let before = IP_BYTES + UDP_BYTES + head.len() + MACS.len() + IPV4_ETHERTYPE.len();
        [&head[..], &MACS, &IPV4_ETHERTYPE, &inner(before, 1)].concat()
    };
    let [v0, v1, v2] = VNI;
    let carried = match mark.method {
        // Flag I: the VNI is valid.
        Method::Vxlan8472 | Method::Vxlan4789 => framed([0x08, 0, 0, 0, v0, v1, v2, 0]),
        Method::Geneve => framed([0, 0, ETHERNET[0], ETHERNET[1], v0, v1, v2, 0]),
        Method::Wireguard => {
            // Type 4, session, counter (8).
            let head = [&[4, 0, 0, 0], &WIREGUARD_SESSION[..], &[0; 8]].concat();
            let content = content(IP_BYTES + UDP_BYTES + head.len());
            [head, content].concat()
        }
        Method::Ipip => return Some(ip(from, to, IPIP, TTL, &inner(IP_BYTES, 1))),
        Method::Plain => {
            let (from, to) = ends.pods?;
            let datagram = udp(from, to, source, DISCARD, &content(IP_BYTES + UDP_BYTES));
            return Some(ip(from, to, UDP, TTL, &datagram));
        }
    };
    let port = mark.method.port()?;
    Some(ip(from, to, UDP, TTL, &udp(from, to, source, port, &carried)))
}

/// Reads a packet, from the IP header on; what follows its end is passed over.
/// None unless it is one of these, of whatever run, and still as it was sent.
#[must_use]
pub fn read(packet: &[u8]) -> Option<Mark> {
    let head: &[u8; IP_BYTES] = packet.first_chunk()?;
    let ihl = usize::from(head[0] & 0x0f) * 4;
    if head[0] >> 4 != 4 || ihl < IP_BYTES {
        return None;
    }
    let packet = packet.get(..usize::from(u16::from_be_bytes([head[2], head[3]])))?;
    let body = packet.get(ihl..)?;
    let mark = Mark::read(body.last_chunk()?)?;
    let protocol = if mark.method == Method::Ipip { IPIP } else { UDP };
    let port = mark.method.port().unwrap_or(DISCARD).to_be_bytes();
    let fits = head[9] == protocol && (protocol == IPIP || body.get(2..4)? == port);
    fits.then_some(mark)
}

impl Mark {
    fn bytes(self) -> [u8; MARK_BYTES] {
        let mut bytes = [0; MARK_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..12].copy_from_slice(&self.nonce.to_be_bytes());
        bytes[12..].copy_from_slice(&[
            self.method as u8,
            self.size as u8,
            self.round,
            u8::from(self.back),
        ]);
        bytes
    }

    fn read(bytes: &[u8; MARK_BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let [method, size, round, back] = *rest.first_chunk()?;
        let known = *magic == MAGIC && round < ROUNDS && back <= 1;
        known.then_some(Self {
            nonce: u64::from_be_bytes(*nonce),
            method: *Method::ALL.get(usize::from(method))?,
            size: *Size::ALL.get(usize::from(size))?,
            round,
            back: back == 1,
        })
    }
}

fn ip(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, ttl: u8, body: &[u8]) -> Vec<u8> {
    let mut head = [0; IP_BYTES];
    head[0] = 0x45;
    head[2..4].copy_from_slice(&length(IP_BYTES + body.len()));
    head[6..8].copy_from_slice(&DO_NOT_FRAGMENT.to_be_bytes());
    head[8] = ttl;
    head[9] = protocol;
    head[12..16].copy_from_slice(&from.octets());
    head[16..].copy_from_slice(&to.octets());
    let sum = checksum(&[&head]);
    head[10..12].copy_from_slice(&sum);
    [&head, body].concat()
}

fn udp(from: Ipv4Addr, to: Ipv4Addr, source: u16, port: u16, body: &[u8]) -> Vec<u8> {
    let length = length(UDP_BYTES + body.len());
    let mut head = [0; UDP_BYTES];
    head[..2].copy_from_slice(&source.to_be_bytes());
    head[2..4].copy_from_slice(&port.to_be_bytes());
    head[4..6].copy_from_slice(&length);
    let pseudo = [from.octets(), to.octets(), [0, UDP, length[0], length[1]]].concat();
    // Zero would mean that there is none (RFC 768).
    let sum = match checksum(&[&pseudo, &head, body]) {
        [0, 0] => [0xff, 0xff],
        sum => sum,
    };
    head[6..].copy_from_slice(&sum);
    [&head, body].concat()
}

/// A length field. No packet is longer than it tells: `build` takes a u16.
fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

/// The Internet checksum (RFC 1071) over parts of which all but the last are even.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let pairs = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = pairs
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Folded above: it fits.
    (!u16::try_from(sum).unwrap_or(u16::MAX)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: Ends = Ends {
        from: Ipv4Addr::new(10, 0, 0, 1),
        to: Ipv4Addr::new(10, 0, 0, 2),
        pods: Some((Ipv4Addr::new(10, 244, 1, 0), Ipv4Addr::new(10, 244, 2, 0))),
    };

    fn mark(method: Method, size: Size) -> Mark {
        Mark { nonce: 0x0102_0304_0506_0708, method, size, round: 4, back: true }
    }

    /// The sum over an IPv4 header with its checksum is zero.
    fn header_holds(packet: &[u8]) -> bool {
        checksum(&[&packet[..IP_BYTES]]) == [0, 0]
    }

    #[test]
    fn every_packet_has_its_size_and_is_known_again() {
        for method in Method::ALL {
            for (size, bytes) in [(Size::Small, SMALL_BYTES), (Size::Full, 1_500)] {
                let mut packet = build(&ENDS, mark(method, size), bytes).unwrap();
                assert_eq!(packet.len(), usize::from(bytes), "{method}");
                assert!(header_holds(&packet), "{method}");
                assert_eq!(packet[6..8], [0x40, 0], "{method}: DF");
                assert_eq!(read(&packet), Some(mark(method, size)));
                // Padding of Ethernet, or a trailer.
                packet.extend([0xee; 7]);
                assert_eq!(read(&packet), Some(mark(method, size)));
            }
        }
    }

    #[test]
    fn they_are_what_their_encapsulations_send() {
        let small = |method| build(&ENDS, mark(method, Size::Small), SMALL_BYTES).unwrap();
        let vxlan = small(Method::Vxlan8472);
        assert_eq!((vxlan[9], &vxlan[22..24]), (17, &8472_u16.to_be_bytes()[..]));
        assert_eq!(vxlan[28..36], [8, 0, 0, 0, 0xff, 0xff, 0xfe, 0]);
        assert_eq!(vxlan[48..50], [8, 0]);
        assert!(header_holds(&vxlan[50..]));
        // The packet inside goes to the same node, and no farther.
        assert_eq!((vxlan[58], &vxlan[66..70]), (1, &[10, 0, 0, 2][..]));
        let geneve = small(Method::Geneve);
        assert_eq!(geneve[28..36], [0, 0, 0x65, 0x58, 0xff, 0xff, 0xfe, 0]);
        let ipip = small(Method::Ipip);
        assert_eq!((ipip[9], ipip[20] >> 4, ipip[28]), (4, 4, 1));
        assert!(header_holds(&ipip[20..]));
        assert_eq!(small(Method::Wireguard)[28..32], [4, 0, 0, 0]);
        let plain = small(Method::Plain);
        assert_eq!(plain[12..20], [10, 244, 1, 0, 10, 244, 2, 0]);
    }

    #[test]
    fn datagrams_carry_a_checksum_that_holds() {
        let plain = build(&ENDS, mark(Method::Plain, Size::Small), 129).unwrap();
        let datagram = &plain[IP_BYTES..];
        let length = length(datagram.len());
        let pseudo = [&plain[12..20], &[0, UDP], &length].concat();
        assert_eq!(checksum(&[&pseudo, datagram]), [0, 0]);
    }

    #[test]
    fn what_was_changed_or_is_foreign_is_not_taken() {
        let ipip = build(&ENDS, mark(Method::Ipip, Size::Small), SMALL_BYTES).unwrap();
        // What is inside has the same mark, but came as something else.
        assert_eq!(read(&ipip[IP_BYTES..]), None);
        assert_eq!(read(&ipip[..ipip.len() - 1]), None);
        let mut other = ipip.clone();
        *other.last_mut().unwrap() = 2;
        assert_eq!(read(&other), None);
        let mut port = build(&ENDS, mark(Method::Geneve, Size::Small), SMALL_BYTES).unwrap();
        port[23] ^= 1;
        assert_eq!(read(&port), None);
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[0x45; 19]), None);
    }

    #[test]
    fn pod_addresses_must_be_known() {
        let ends = Ends { pods: None, ..ENDS };
        assert_eq!(build(&ends, mark(Method::Plain, Size::Small), SMALL_BYTES), None);
    }
}
