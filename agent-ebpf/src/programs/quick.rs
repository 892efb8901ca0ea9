//! The quick look: most packets are no probe and no error, and their headers
//! lie at fixed places of the packet's linear part. Those are told apart here by
//! a few loads; a call of the kernel for each header would cost several times
//! as much. Whatever is not as usual is left to the thorough look.

use aya_ebpf::programs::TcContext;
use overlaywatch_ebpf::{Address, TrafficKey, encapsulation};

use crate::maps::{is_vxlan, kernel};
use crate::packet::{
    ETHERNET_BYTES, ICMP_V4, ICMP_V6, IPV4, IPV6, IPV6_BYTES, SERVICE_VLAN, UDP, UDP_BYTES, VLAN,
    VXLAN_BYTES, Way,
};

/// Length of an IPv4 header without options.
const IPV4_BYTES: usize = 20;
/// Version 4 and a length of five words: no options.
const PLAIN: u8 = 0x45;
/// More fragments follow, or some came before (RFC 791), network byte order.
const FRAGMENT: u16 = 0x3fff_u16.to_be();

/// What a packet on the underlay is.
pub enum Outer {
    /// Not to be counted.
    Other,
    /// Encapsulated, whole, and no probe.
    Traffic(TrafficKey),
    /// To be looked at thoroughly.
    Unusual,
}

/// The part of a packet that programs see without a call.
struct Linear {
    start: usize,
    end: usize,
}

impl Linear {
    #[inline(always)]
    fn of(ctx: &TcContext) -> Self {
        Self { start: ctx.data(), end: ctx.data_end() }
    }

    /// The header of so many bytes at `at`, if all of it is there.
    #[inline(always)]
    fn header(&self, at: usize, bytes: usize) -> Option<Header> {
        let from = self.start + at;
        (from + bytes <= self.end).then_some(Header(from))
    }
}

/// Where a header begins.
struct Header(usize);

impl Header {
    /// A field, network byte order.
    #[inline(always)]
    fn field<T: Copy>(&self, at: usize) -> T {
        // SAFETY: the verifier refuses a program that reads beyond what it
        // compared with the packet's end, or less aligned than the machine can.
        unsafe { *((self.0 + at) as *const T) }
    }

    /// Whether the UDP header that begins here is that of a probe.
    #[inline(always)]
    fn is_probe(&self) -> bool {
        let port = kernel!(probe_port).to_be();
        self.field::<u16>(2) == port || self.field::<u16>(0) == port
    }
}

/// Whether the packet whose IP header is at `at` may be a probe.
#[inline(always)]
pub fn may_be_probe(ctx: &TcContext, at: usize, protocol: u16) -> bool {
    is_probe(&Linear::of(ctx), at, protocol).unwrap_or(true)
}

/// Whether the packet whose IP header is at `at` is addressed as probes are;
/// none when that takes a thorough look.
#[inline(always)]
fn is_probe(packet: &Linear, at: usize, protocol: u16) -> Option<bool> {
    match protocol {
        IPV4 => {
            let ip = packet.header(at, IPV4_BYTES)?;
            if ip.field::<u8>(9) != UDP {
                return Some(false);
            }
            if ip.field::<u8>(0) != PLAIN {
                return None;
            }
            Some(packet.header(at + IPV4_BYTES, UDP_BYTES)?.is_probe())
        }
        IPV6 => {
            let ip = packet.header(at, IPV6_BYTES)?;
            if ip.field::<u8>(6) != UDP {
                return Some(false);
            }
            Some(packet.header(at + IPV6_BYTES, UDP_BYTES)?.is_probe())
        }
        _ => Some(false),
    }
}

/// What the packet is whose outer IP header is at `at`.
#[inline(always)]
pub fn outer(ctx: &TcContext, at: usize, protocol: u16, way: Way) -> Outer {
    look(&Linear::of(ctx), at, protocol, way).unwrap_or(Outer::Unusual)
}

#[inline(always)]
fn look(packet: &Linear, at: usize, protocol: u16, way: Way) -> Option<Outer> {
    match protocol {
        IPV4 => {
            let ip = packet.header(at, IPV4_BYTES)?;
            let protocol: u8 = ip.field(9);
            if !may_count(protocol, ICMP_V4, way) {
                return Some(Outer::Other);
            }
            if ip.field::<u8>(0) != PLAIN || ip.field::<u16>(6) & FRAGMENT != 0 {
                return None;
            }
            let remote = Address::v4(ip.field(if way == Way::In { 12 } else { 16 }));
            inside(packet, at + IPV4_BYTES, protocol, remote, way)
        }
        IPV6 => {
            let ip = packet.header(at, IPV6_BYTES)?;
            let protocol: u8 = ip.field(6);
            if !may_count(protocol, ICMP_V6, way) {
                return Some(Outer::Other);
            }
            let remote = Address(ip.field(if way == Way::In { 8 } else { 24 }));
            inside(packet, at + IPV6_BYTES, protocol, remote, way)
        }
        VLAN | SERVICE_VLAN => None,
        _ => Some(Outer::Other),
    }
}

/// Whether packets of an IP protocol may have to be counted.
#[inline(always)]
fn may_count(protocol: u8, icmp: u8, way: Way) -> bool {
    protocol == UDP || protocol == encapsulation::IPIP || (protocol == icmp && way == Way::In)
}

/// What the packet is whose outer IP header is known.
#[inline(always)]
fn inside(
    packet: &Linear,
    payload: usize,
    protocol: u8,
    remote: Address,
    way: Way,
) -> Option<Outer> {
    let (encapsulation, port, is_probe) = match protocol {
        UDP => {
            let udp = packet.header(payload, UDP_BYTES)?;
            let port = u16::from_be(udp.field(2));
            if !is_vxlan(port) {
                return if udp.is_probe() { None } else { Some(Outer::Other) };
            }
            let frame = payload + UDP_BYTES + VXLAN_BYTES;
            let ethertype = packet.header(frame, ETHERNET_BYTES)?.field(12);
            let is_probe = is_probe(packet, frame + ETHERNET_BYTES, u16::from_be(ethertype))?;
            (encapsulation::VXLAN, port, is_probe)
        }
        encapsulation::IPIP => (encapsulation::IPIP, 0, is_probe(packet, payload, IPV4)?),
        _ => return None,
    };
    (!is_probe).then(|| Outer::Traffic(way.key(remote, encapsulation, port)))
}
