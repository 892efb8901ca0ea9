//! The packets that are sent, and how they are known again.
//!
//! Each is what its encapsulation would put on the wire, and harmless where it
//! arrives:
//! - VXLAN and Geneve carry a VNI that nobody has and a foreign MAC address, so
//!   that a kernel which has the port drops them (`VXLAN_VNI_NOT_FOUND`, or as
//!   another host's where it takes any VNI).
//! - WireGuard's is a data packet of a session that nobody has.
//! - The packet inside goes from nobody (RFC 1122, 3.2.1.3; RFC 4291, 2.5.2) to
//!   all on the link, UDP port 9, discard, with a TTL of 1. Where a tunnel device
//!   takes it out, no router forwards it, no reverse path filter looks at it
//!   (`brd_input` in `ip_route_input_slow`, net/ipv4/route.c), and nobody answers it.
//! - Where nobody listens on the outer port the kernel answers with an ICMP error
//!   to the sender.
//!
//! The last 16 bytes of every packet are its mark, integers in network byte
//! order: `OWPF`, the nonce (8), method, size, round, and 1 on the way back
//! from the end that serves. At the end it stands at the same place in all of
//! them, so that a socket filter of five instructions finds it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Method, ROUNDS, Size};

/// What a mark and a frame begin with.
pub const MAGIC: [u8; 4] = *b"OWPF";
/// Bytes of a mark.
pub const MARK_BYTES: usize = 16;
/// Outer bytes of a small packet: VXLAN between IPv6 nodes takes 134.
pub const SMALL_BYTES: u16 = 160;

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;
const UDP: u8 = 17;
const IPIP: u8 = 4;
/// IPv6 in IP (RFC 2473).
const IPV6: u8 = 41;
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
const ETHERTYPE_BYTES: usize = 2;
/// Transparent Ethernet bridging, what Geneve carries (RFC 8926).
const ETHERNET: [u8; 2] = [0x65, 0x58];
/// A session index that no WireGuard peer gave out, but by a chance of 2^-32.
const WIREGUARD_SESSION: [u8; 4] = *b"OWPF";
/// All nodes on the link (RFC 4291, 2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

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
    pub from: IpAddr,
    /// The receiver's underlay address.
    pub to: IpAddr,
    /// An address of the sender's pod network and one of the receiver's.
    pub pods: Option<(IpAddr, IpAddr)>,
}

/// The two addresses of an IP header.
#[derive(Clone, Copy)]
enum Pair {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

/// Writes a packet from the outer IP header on, of `bytes` or as many as it
/// needs. None for plain pod addresses that are not known, and between
/// addresses of two families.
#[must_use]
pub fn build(ends: &Ends, mark: Mark, bytes: u16) -> Option<Vec<u8>> {
    let outer = Pair::of(ends.from, ends.to)?;
    let inside = outer.nobody_to_all();
    let before = outer.head_bytes();
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
    let inner = |overhead: usize| {
        let overhead = overhead + inside.head_bytes() + UDP_BYTES;
        ip(inside, UDP, 1, &udp(inside, source, DISCARD, &content(overhead)))
    };
    let framed = |head: [u8; 8]| {
        let before = before + UDP_BYTES + head.len() + MACS.len() + ETHERTYPE_BYTES;
        [&head[..], &MACS, &inside.ethertype(), &inner(before)].concat()
    };
    let [v0, v1, v2] = VNI;
    let carried = match mark.method {
        // Flag I: the VNI is valid.
        Method::Vxlan8472 | Method::Vxlan4789 => framed([0x08, 0, 0, 0, v0, v1, v2, 0]),
        Method::Geneve => framed([0, 0, ETHERNET[0], ETHERNET[1], v0, v1, v2, 0]),
        Method::Wireguard => {
            // Type 4, session, counter (8).
            let head = [&[4, 0, 0, 0], &WIREGUARD_SESSION[..], &[0; 8]].concat();
            let content = content(before + UDP_BYTES + head.len());
            [head, content].concat()
        }
        Method::Ipip => return Some(ip(outer, outer.in_ip(), TTL, &inner(before))),
        Method::Plain => {
            let (from, to) = ends.pods?;
            let pods = Pair::of(from, to).filter(|pods| pods.in_ip() == outer.in_ip())?;
            let datagram = udp(pods, source, DISCARD, &content(before + UDP_BYTES));
            return Some(ip(pods, UDP, TTL, &datagram));
        }
    };
    let port = mark.method.port()?;
    Some(ip(outer, UDP, TTL, &udp(outer, source, port, &carried)))
}

/// Reads a packet, from the IP header on; what follows its end is passed over.
/// None unless it is one of these, of whatever run, and still as it was sent.
#[must_use]
pub fn read(packet: &[u8]) -> Option<Mark> {
    if packet.first()? >> 4 == 6 {
        let head: &[u8; IPV6_BYTES] = packet.first_chunk()?;
        let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
        return read_payload(head[6], packet.get(IPV6_BYTES..IPV6_BYTES + length)?);
    }
    let head: &[u8; IPV4_BYTES] = packet.first_chunk()?;
    let ihl = usize::from(head[0] & 0x0f) * 4;
    if head[0] >> 4 != 4 || ihl < IPV4_BYTES {
        return None;
    }
    let packet = packet.get(..usize::from(u16::from_be_bytes([head[2], head[3]])))?;
    read_payload(head[9], packet.get(ihl..)?)
}

/// Reads what an IP header with this protocol carries, as [`read`] does: raw
/// sockets of IPv6 give no header (raw(7), ipv6(7)).
#[must_use]
pub fn read_payload(protocol: u8, body: &[u8]) -> Option<Mark> {
    let mark = Mark::read(body.last_chunk()?)?;
    let fits = match mark.method {
        Method::Ipip => protocol == IPIP || protocol == IPV6,
        method => {
            let port = method.port().unwrap_or(DISCARD).to_be_bytes();
            protocol == UDP && body.get(2..4)? == port
        }
    };
    fits.then_some(mark)
}

impl Pair {
    const fn of(from: IpAddr, to: IpAddr) -> Option<Self> {
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Some(Self::V4(from, to)),
            (IpAddr::V6(from), IpAddr::V6(to)) => Some(Self::V6(from, to)),
            _ => None,
        }
    }

    /// Of the same family, and nobody's.
    const fn nobody_to_all(self) -> Self {
        match self {
            Self::V4(..) => Self::V4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST),
            Self::V6(..) => Self::V6(Ipv6Addr::UNSPECIFIED, ALL_NODES),
        }
    }

    const fn head_bytes(self) -> usize {
        match self {
            Self::V4(..) => IPV4_BYTES,
            Self::V6(..) => IPV6_BYTES,
        }
    }

    const fn ethertype(self) -> [u8; ETHERTYPE_BYTES] {
        match self {
            Self::V4(..) => [0x08, 0x00],
            Self::V6(..) => [0x86, 0xdd],
        }
    }

    /// The protocol of its packets inside others.
    const fn in_ip(self) -> u8 {
        match self {
            Self::V4(..) => IPIP,
            Self::V6(..) => IPV6,
        }
    }

    fn octets(self) -> Vec<u8> {
        match self {
            Self::V4(from, to) => [from.octets(), to.octets()].concat(),
            Self::V6(from, to) => [from.octets(), to.octets()].concat(),
        }
    }
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

fn ip(pair: Pair, protocol: u8, ttl: u8, body: &[u8]) -> Vec<u8> {
    let addresses = pair.octets();
    if matches!(pair, Pair::V6(..)) {
        let [high, low] = length(body.len());
        let head = [0x60, 0, 0, 0, high, low, protocol, ttl];
        return [&head[..], &addresses, body].concat();
    }
    let mut head = [0; IPV4_BYTES];
    head[0] = 0x45;
    head[2..4].copy_from_slice(&length(IPV4_BYTES + body.len()));
    head[6..8].copy_from_slice(&DO_NOT_FRAGMENT.to_be_bytes());
    head[8] = ttl;
    head[9] = protocol;
    head[12..].copy_from_slice(&addresses);
    let sum = checksum(&[&head]);
    head[10..12].copy_from_slice(&sum);
    [&head, body].concat()
}

fn udp(pair: Pair, source: u16, port: u16, body: &[u8]) -> Vec<u8> {
    let length = length(UDP_BYTES + body.len());
    let mut head = [0; UDP_BYTES];
    head[..2].copy_from_slice(&source.to_be_bytes());
    head[2..4].copy_from_slice(&port.to_be_bytes());
    head[4..6].copy_from_slice(&length);
    // In IPv6 these fields are longer (RFC 8200, 8.1), and the sum is the same.
    let pseudo = [&pair.octets()[..], &[0, UDP], &length].concat();
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

    fn ends() -> Ends {
        Ends {
            from: [10, 0, 0, 1].into(),
            to: [10, 0, 0, 2].into(),
            pods: Some(([10, 244, 1, 0].into(), [10, 244, 2, 0].into())),
        }
    }

    fn ends_v6() -> Ends {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        Ends {
            from: address("fd00::1"),
            to: address("fd00::2"),
            pods: Some((address("fd01:1::"), address("fd01:2::"))),
        }
    }

    fn mark(method: Method, size: Size) -> Mark {
        Mark { nonce: 0x0102_0304_0506_0708, method, size, round: 4, back: true }
    }

    /// The sum over an IPv4 header with its checksum is zero.
    fn header_holds(packet: &[u8]) -> bool {
        checksum(&[&packet[..IPV4_BYTES]]) == [0, 0]
    }

    #[test]
    fn every_packet_has_its_size_and_is_known_again() {
        for (ends, method) in Method::ALL.into_iter().flat_map(|m| [(ends(), m), (ends_v6(), m)]) {
            for (size, bytes) in [(Size::Small, SMALL_BYTES), (Size::Full, 1_500)] {
                let mut packet = build(&ends, mark(method, size), bytes).unwrap();
                assert_eq!(packet.len(), usize::from(bytes), "{method:?}");
                if ends.from.is_ipv4() {
                    assert!(header_holds(&packet), "{method:?}");
                    assert_eq!(packet[6..8], [0x40, 0], "{method:?}: DF");
                } else {
                    let protocol = if method == Method::Ipip { IPV6 } else { UDP };
                    assert_eq!((packet[0] >> 4, packet[6]), (6, protocol), "{method:?}");
                    let body = &packet[IPV6_BYTES..];
                    assert_eq!(read_payload(protocol, body), Some(mark(method, size)));
                }
                assert_eq!(read(&packet), Some(mark(method, size)));
                // Padding of Ethernet, or a trailer.
                packet.extend([0xee; 7]);
                assert_eq!(read(&packet), Some(mark(method, size)));
            }
        }
    }

    #[test]
    fn they_are_what_their_encapsulations_send() {
        let small = |method| build(&ends(), mark(method, Size::Small), SMALL_BYTES).unwrap();
        let vxlan = small(Method::Vxlan8472);
        assert_eq!((vxlan[9], &vxlan[22..24]), (17, &8472_u16.to_be_bytes()[..]));
        assert_eq!(vxlan[28..36], [8, 0, 0, 0, 0xff, 0xff, 0xfe, 0]);
        assert_eq!(vxlan[48..50], [8, 0]);
        assert!(header_holds(&vxlan[50..]));
        // The packet inside is nobody's, for everybody, and goes no farther.
        assert_eq!((vxlan[58], &vxlan[62..70]), (1, &[0, 0, 0, 0, 255, 255, 255, 255][..]));
        let geneve = small(Method::Geneve);
        assert_eq!(geneve[28..36], [0, 0, 0x65, 0x58, 0xff, 0xff, 0xfe, 0]);
        let ipip = small(Method::Ipip);
        assert_eq!((ipip[9], ipip[20] >> 4, ipip[28]), (4, 4, 1));
        assert!(header_holds(&ipip[20..]));
        assert_eq!(small(Method::Wireguard)[28..32], [4, 0, 0, 0]);
        let plain = small(Method::Plain);
        assert_eq!(plain[12..20], [10, 244, 1, 0, 10, 244, 2, 0]);
        let inside =
            &build(&ends_v6(), mark(Method::Ipip, Size::Small), SMALL_BYTES).unwrap()[40..];
        assert_eq!((inside[0], inside[7], inside[24..40] == ALL_NODES.octets()), (0x60, 1, true));
    }

    #[test]
    fn datagrams_carry_a_checksum_that_holds() {
        for (ends, head) in [(ends(), IPV4_BYTES), (ends_v6(), IPV6_BYTES)] {
            let plain = build(&ends, mark(Method::Plain, Size::Small), 163).unwrap();
            let datagram = &plain[head..];
            let length = length(datagram.len());
            let addresses = if head == IPV4_BYTES { &plain[12..20] } else { &plain[8..40] };
            let pseudo = [addresses, &[0, UDP], &length].concat();
            assert_eq!(checksum(&[&pseudo, datagram]), [0, 0]);
        }
    }

    #[test]
    fn what_was_changed_or_is_foreign_is_not_taken() {
        let ipip = build(&ends(), mark(Method::Ipip, Size::Small), SMALL_BYTES).unwrap();
        // What is inside has the same mark, but came as something else.
        assert_eq!(read(&ipip[IPV4_BYTES..]), None);
        assert_eq!(read(&ipip[..ipip.len() - 1]), None);
        let mut other = ipip.clone();
        *other.last_mut().unwrap() = 2;
        assert_eq!(read(&other), None);
        let mut port = build(&ends(), mark(Method::Geneve, Size::Small), SMALL_BYTES).unwrap();
        port[23] ^= 1;
        assert_eq!(read(&port), None);
        let v6 = build(&ends_v6(), mark(Method::Geneve, Size::Small), SMALL_BYTES).unwrap();
        assert_eq!(read(&v6[..v6.len() - 1]), None);
        assert_eq!(read(&v6[..39]), None);
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[0x45; 19]), None);
    }

    #[test]
    fn pod_addresses_must_be_known_and_of_the_nodes_family() {
        let build = |ends| build(&ends, mark(Method::Plain, Size::Small), SMALL_BYTES);
        assert_eq!(build(Ends { pods: None, ..ends() }), None);
        assert_eq!(build(Ends { pods: ends_v6().pods, ..ends() }), None);
        assert_eq!(build(Ends { to: ends_v6().to, ..ends() }), None);
    }
}
