//! Headers in packets that traffic control shows, and probes among them.

use aya_ebpf::programs::TcContext;
use overlaywatch_ebpf::{
    Address, MAGIC, PROBE_VERSION, ProbeHead, ProbeKey, REPLY, REQUEST, TrafficKey,
    UNDERLAY_STREAM, Windows, direction, missed,
};

use crate::maps::{PROBES, kernel, miss, peer};

/// EtherTypes (include/uapi/linux/if_ether.h).
pub const IPV4: u16 = 0x0800;
/// IPv6.
pub const IPV6: u16 = 0x86dd;
/// 802.1Q.
pub const VLAN: u16 = 0x8100;
/// 802.1ad.
pub const SERVICE_VLAN: u16 = 0x88a8;
/// UDP (include/uapi/linux/in.h).
pub const UDP: u8 = 17;
/// ICMP.
pub const ICMP_V4: u8 = 1;
/// ICMPv6 (include/uapi/linux/in6.h).
pub const ICMP_V6: u8 = 58;
/// An Ethernet header.
pub const ETHERNET_BYTES: usize = 14;
/// A UDP header.
pub const UDP_BYTES: usize = 8;
/// A VXLAN header.
pub const VXLAN_BYTES: usize = 8;

/// An IPv4 header without options (RFC 791).
#[repr(C)]
pub struct Ipv4 {
    pub version_and_length: u8,
    pub service: u8,
    pub total: [u8; 2],
    pub id: [u8; 2],
    pub fragment: [u8; 2],
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: [u8; 2],
    pub source: [u8; 4],
    pub destination: [u8; 4],
}

impl Ipv4 {
    /// Length of the header, options included, bytes.
    #[inline(always)]
    pub fn bytes(&self) -> usize {
        usize::from(self.version_and_length & 15) * 4
    }

    /// Offset in units of eight bytes, and whether more fragments follow.
    #[inline(always)]
    pub fn fragment(&self) -> (u16, bool) {
        let word = u16::from_be_bytes(self.fragment);
        (word & 0x1fff, word & 0x2000 != 0)
    }
}

/// An IPv6 header (RFC 8200).
#[repr(C)]
pub struct Ipv6 {
    pub version: [u8; 4],
    pub payload: [u8; 2],
    pub next: u8,
    pub hops: u8,
    pub source: [u32; 4],
    pub destination: [u32; 4],
}

/// Length of an IPv6 header.
pub const IPV6_BYTES: usize = 40;

/// A UDP header (RFC 768), without length and checksum.
#[repr(C)]
pub struct Ports {
    pub source: [u8; 2],
    pub destination: [u8; 2],
}

impl Ports {
    /// The port that a packet is sent to.
    #[inline(always)]
    pub fn destination(&self) -> u16 {
        u16::from_be_bytes(self.destination)
    }

    /// Whether a request or a reply of probes may be behind it.
    #[inline(always)]
    pub fn is_probe(&self) -> bool {
        let port = kernel!(probe_port);
        u16::from_be_bytes(self.destination) == port || u16::from_be_bytes(self.source) == port
    }
}

/// Which way a packet crosses the device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    In,
    Out,
}

impl Way {
    /// What traffic this way with the other end is counted by.
    #[inline(always)]
    pub fn key(self, peer: Address, encapsulation: u8, port: u16) -> TrafficKey {
        let direction = if self == Self::In { direction::INGRESS } else { direction::EGRESS };
        TrafficKey { peer, port, encapsulation, direction }
    }
}

/// An IP header and what follows it: where UDP begins, and the other end's address.
pub struct Ip {
    pub protocol: u8,
    /// Where the payload begins.
    pub payload: usize,
    pub remote: Address,
    /// Not the first fragment: there is no further header.
    pub is_rest: bool,
    /// The first fragment of several.
    pub is_first: bool,
}

/// The IP header at `at`, of a packet whose EtherType is `protocol`.
#[inline(always)]
pub fn ip(ctx: &TcContext, at: usize, protocol: u16, way: Way) -> Option<Ip> {
    if protocol == IPV4 {
        let header: Ipv4 = ctx.load(at).ok()?;
        let (offset, more) = header.fragment();
        let remote = if way == Way::In { header.source } else { header.destination };
        Some(Ip {
            protocol: header.protocol,
            payload: at + header.bytes(),
            remote: Address::v4(u32::from_ne_bytes(remote)),
            is_rest: offset != 0,
            is_first: offset == 0 && more,
        })
    } else if protocol == IPV6 {
        let header: Ipv6 = ctx.load(at).ok()?;
        let remote = if way == Way::In { header.source } else { header.destination };
        Some(Ip {
            protocol: header.next,
            payload: at + IPV6_BYTES,
            remote: Address(remote),
            is_rest: false,
            is_first: false,
        })
    } else {
        None
    }
}

/// Counts the inner packet whose IP header is at `at`, if it is a probe.
#[inline(always)]
pub fn count_inner(
    ctx: &TcContext,
    at: usize,
    protocol: u16,
    way: Way,
    hop: usize,
    outer: Option<Address>,
) -> Option<()> {
    let ip = ip(ctx, at, protocol, way)?;
    if ip.protocol != UDP || ip.is_rest {
        return None;
    }
    let ports: Ports = ctx.load(ip.payload).ok()?;
    if !ports.is_probe() {
        return None;
    }
    record(ctx, ip.payload + UDP_BYTES, hop, true, &outer.unwrap_or(ip.remote))
}

/// Counts the probe whose message begins at `at`, if its stream is one of those
/// that pass here: inside a tunnel or not. Only a peer's streams are taken in,
/// so that a stranger cannot fill the map.
#[inline(always)]
pub fn record(
    ctx: &TcContext,
    at: usize,
    hop: usize,
    inside: bool,
    remote: &Address,
) -> Option<()> {
    let head: ProbeHead = ctx.load(at).ok()?;
    if head.magic != MAGIC || head.version != PROBE_VERSION {
        return None;
    }
    if (head.stream[0] == UNDERLAY_STREAM) == inside {
        return None;
    }
    let is_request = match head.kind {
        REQUEST => true,
        REPLY => false,
        _ => return None,
    };
    let key = ProbeKey { epoch: head.epoch, stream: head.stream };
    let windows = match PROBES.get_ptr_mut(&key) {
        Some(windows) => windows,
        None => {
            peer(remote)?;
            let none = Windows::default();
            if PROBES.insert(&key, &none, 0).is_err() {
                miss(missed::PROBES);
                return None;
            }
            PROBES.get_ptr_mut(&key)?
        }
    };
    // SAFETY: a map's value stays valid while the program runs; races are told
    // of at `Window::record`.
    let windows = unsafe { &mut *windows };
    let at_hops = if is_request { &mut windows.requests } else { &mut windows.replies };
    at_hops.get_mut(hop)?.record(u32::from_be_bytes(head.seq));
    Some(())
}
