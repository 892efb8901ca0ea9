//! skb:kfree_skb: which encapsulated packets, inner packets and probes this
//! node's kernel drops, where and why.
//!
//! The tracepoint is the whole host's; only packets of this network namespace
//! count. Arguments (include/trace/events/skb.h): the packet, the location,
//! and from 5.17 on the reason.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use overlaywatch_ebpf::{
    Address, DropKey, Dropped, MAGIC, NO_OFFSET, PROBE_VERSION, ProbeHead, direction,
    encapsulation, form, missed, role,
};

use crate::maps::{DEVICES, DROPS, is_vxlan, kernel, miss, peer};
use crate::packet::{
    ETHERNET_BYTES, IPV4, IPV6, IPV6_BYTES, Ipv4, Ipv6, Ports, UDP, UDP_BYTES, VXLAN_BYTES,
};

/// An addition whose result nobody reads is an instruction that every kernel has.
const RELAXED: AtomicOrdering = AtomicOrdering::Relaxed;

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn ow_kfree_skb(ctx: RawTracePointContext) -> i32 {
    let _ = count(&ctx);
    0
}

/// Reads a value at an offset of a kernel structure.
#[inline(always)]
fn read<T>(base: u64, offset: u16) -> Option<T> {
    if base == 0 || offset == NO_OFFSET {
        return None;
    }
    at(base + u64::from(offset))
}

/// Reads a value of kernel memory.
#[inline(always)]
fn at<T>(address: u64) -> Option<T> {
    // SAFETY: the helper fails on an address that cannot be read.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// Whether a device is of this node's namespace.
#[inline(always)]
fn is_here(device: u64) -> Option<bool> {
    let net: u64 = read(device, kernel!(dev_net))?;
    let netns: u32 = read(net, kernel!(net_inum))?;
    Some(netns == kernel!(netns))
}

#[inline(always)]
fn role_of(index: u32) -> u32 {
    // SAFETY: the agent writes whole words.
    unsafe { DEVICES.get(&index) }.copied().unwrap_or(0)
}

/// What is known of the packet so far.
struct Packet {
    peer: Address,
    /// Which way it goes, as one of [`direction`].
    direction: u8,
    /// To or from the peer's overlay: it is, or would be, inside a tunnel.
    is_overlay: bool,
    /// Where what follows the IP header begins.
    payload: u64,
    ip_protocol: u8,
    is_rest: bool,
}

#[inline(always)]
fn count(ctx: &RawTracePointContext) -> Option<()> {
    let skb: u64 = ctx.arg(0);
    let device: u64 = read(skb, kernel!(skb_dev)).unwrap_or(0);
    // Most drops that are not ours are turned away here: the tracepoint is the
    // whole host's, and no packet on another namespace's device has a route of ours.
    if device != 0 && !is_here(device)? {
        return None;
    }
    let to = destination_device(skb);
    let index = if device == 0 { None } else { read::<u32>(device, kernel!(dev_ifindex)) };
    let is_to_here = to != 0 && to != device && is_here(to).unwrap_or(false);
    let index_to = if is_to_here { read::<u32>(to, kernel!(dev_ifindex)) } else { None };
    let first = index.or(index_to)?;
    let is_inner = index.is_some_and(|index| role_of(index) == role::TUNNEL)
        || index_to.is_some_and(|index| role_of(index) == role::TUNNEL);
    let ethertype = u16::from_be(read(skb, kernel!(skb_protocol))?);
    let head: u64 = read(skb, kernel!(skb_head))?;
    let network: u16 = read(skb, kernel!(skb_network_header))?;
    let packet = parse(head + u64::from(network), ethertype)?;
    let is_inner = is_inner || packet.is_overlay;
    let (form, message) = classify(&packet, is_inner)?;
    let probe = message
        .and_then(at::<ProbeHead>)
        .filter(|head| head.magic == MAGIC && head.version == PROBE_VERSION);
    if form == form::BARE && probe.is_none() {
        return None;
    }
    let reason = if kernel!(has_reason) == 1 { ctx.arg::<u64>(2) as u32 } else { 0 };
    let key = DropKey {
        location: ctx.arg(1),
        peer: packet.peer,
        reason,
        ifindex: first,
        stream: probe.map_or([0; 4], |head| head.stream),
        ethertype,
        ip_protocol: packet.ip_protocol,
        form,
        probe: probe.map_or(0, |head| head.kind),
        direction: packet.direction,
        pad: [0; 6],
    };
    match DROPS.get_ptr_mut(&key) {
        Some(dropped) => {
            // SAFETY: a map's value is aligned, stays valid while the program
            // runs, and is only added to atomically.
            unsafe { atomic_xadd::<_, _, RELAXED>(&raw mut (*dropped).packets, 1_u64) };
        }
        None => {
            if DROPS.insert(&key, &Dropped { packets: 1 }, 0).is_err() {
                miss(missed::DROPS);
            }
        }
    }
    Some(())
}

/// The device of the packet's route: a packet that this host makes has no other yet.
#[inline(always)]
fn destination_device(skb: u64) -> u64 {
    // The lowest bit says that no reference is held (include/linux/skbuff.h, SKB_DST_NOREF).
    let route = read::<u64>(skb, kernel!(skb_refdst)).unwrap_or(0) & !1;
    read(route, kernel!(dst_dev)).unwrap_or(0)
}

#[inline(always)]
fn parse(header: u64, ethertype: u16) -> Option<Packet> {
    match ethertype {
        IPV4 => {
            let ip: Ipv4 = at(header)?;
            let (peer, direction, is_overlay) = peer_of(
                &Address::v4(u32::from_ne_bytes(ip.source)),
                &Address::v4(u32::from_ne_bytes(ip.destination)),
            );
            Some(Packet {
                peer,
                direction,
                is_overlay,
                payload: header + ip.bytes() as u64,
                ip_protocol: ip.protocol,
                is_rest: ip.fragment().0 != 0,
            })
        }
        IPV6 => {
            let ip: Ipv6 = at(header)?;
            let (peer, direction, is_overlay) =
                peer_of(&Address(ip.source), &Address(ip.destination));
            Some(Packet {
                peer,
                direction,
                is_overlay,
                payload: header + IPV6_BYTES as u64,
                ip_protocol: ip.next,
                is_rest: false,
            })
        }
        _ => None,
    }
}

/// The peer that one of the two addresses belongs to, which way the packet goes,
/// and whether it is another address than the underlay's; this node's own
/// addresses are nobody's.
#[inline(always)]
fn peer_of(source: &Address, destination: &Address) -> (Address, u8, bool) {
    if let Some(known) = peer(destination) {
        (known, direction::EGRESS, known != *destination)
    } else if let Some(known) = peer(source) {
        (known, direction::INGRESS, known != *source)
    } else {
        (Address::default(), 0, false)
    }
}

/// What the packet is, and where a probe's message would begin.
#[inline(always)]
fn classify(packet: &Packet, is_inner: bool) -> Option<(u8, Option<u64>)> {
    if packet.is_rest {
        // Without further headers the encapsulation cannot be told.
        return None;
    }
    if packet.ip_protocol == encapsulation::IPIP && !is_inner {
        return Some((form::OUTER, probe_in(packet.payload)));
    }
    if packet.ip_protocol != UDP {
        return is_inner.then_some((form::INNER, None));
    }
    let ports: Ports = at(packet.payload)?;
    let after = packet.payload + UDP_BYTES as u64;
    if is_vxlan(ports.destination()) {
        let inner = after + (VXLAN_BYTES + ETHERNET_BYTES) as u64;
        return Some((form::OUTER, probe_in(inner)));
    }
    let message = ports.is_probe().then_some(after);
    if is_inner {
        return Some((form::INNER, message));
    }
    message.map(|message| (form::BARE, Some(message)))
}

/// Where the message of a probe in the inner packet whose IP header is at
/// `header` would begin.
#[inline(always)]
fn probe_in(header: u64) -> Option<u64> {
    let version: u8 = at(header)?;
    let (protocol, payload) = if version >> 4 == 4 {
        let ip: Ipv4 = at(header)?;
        (ip.protocol, header + ip.bytes() as u64)
    } else {
        let ip: Ipv6 = at(header)?;
        (ip.next, header + IPV6_BYTES as u64)
    };
    if protocol != UDP {
        return None;
    }
    let ports: Ports = at(payload)?;
    ports.is_probe().then_some(payload + UDP_BYTES as u64)
}
