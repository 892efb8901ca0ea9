//! The underlay NIC: outer packets, probes without encapsulation, and ICMP
//! errors about outer packets.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use overlaywatch_ebpf::{Address, Icmp, IcmpKey, encapsulation, hop, missed};

use crate::maps::{ICMP, is_vxlan, miss};
use crate::packet::{
    ETHERNET_BYTES, ICMP_V4, ICMP_V6, IPV4, IPV6, IPV6_BYTES, Ip, Ipv4, Ipv6, Ports, SERVICE_VLAN,
    UDP, UDP_BYTES, VLAN, VXLAN_BYTES, Way, count_inner, ip, record,
};
use crate::quick;
use crate::traffic::count;

/// ICMP's own header: what is quoted follows.
const ICMP_BYTES: usize = 8;

macro_rules! programs {
    ($($name:ident: $ethernet:literal $way:ident;)*) => {$(
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            observe(&ctx, $ethernet, Way::$way);
            // Never a verdict of our own: the next program decides.
            TC_ACT_UNSPEC
        }
    )*};
}

programs! {
    ow_underlay_in: true In;
    ow_underlay_out: true Out;
    ow_underlay_in_l3: false In;
    ow_underlay_out_l3: false Out;
}

#[inline(always)]
fn observe(ctx: &TcContext, ethernet: bool, way: Way) {
    // SAFETY: the context that the kernel gave.
    let skb = unsafe { &*ctx.skb.skb };
    let at = if ethernet { ETHERNET_BYTES } else { 0 };
    match quick::outer(ctx, at, u16::from_be(skb.protocol as u16), way) {
        quick::Outer::Other => {}
        quick::Outer::Traffic(key) => count(skb, key, false, false),
        quick::Outer::Unusual => {
            look(ctx.skb.skb, ethernet, way);
        }
    }
}

/// Looks at all headers, wherever they are. Apart from the quick look, so that
/// what most packets run through stays short.
#[inline(never)]
fn look(skb: *mut __sk_buff, ethernet: bool, way: Way) -> Option<()> {
    let ctx = &TcContext::new(skb);
    // SAFETY: the context that the kernel gave.
    let skb = unsafe { &*skb };
    let mut protocol = u16::from_be(skb.protocol as u16);
    let mut at = if ethernet { ETHERNET_BYTES } else { 0 };
    // A tag that the device did not take out of the frame.
    if ethernet && (protocol == VLAN || protocol == SERVICE_VLAN) {
        protocol = u16::from_be(ctx.load(at + 2).ok()?);
        at += 4;
    }
    let outer = ip(ctx, at, protocol, way)?;
    if outer.is_rest {
        return None;
    }
    let hop = if way == Way::In { hop::REACHED_NIC } else { hop::LEFT_NIC };
    match outer.protocol {
        UDP => {
            let ports: Ports = ctx.load(outer.payload).ok()?;
            let port = ports.destination();
            if is_vxlan(port) {
                let frame = outer.payload + UDP_BYTES + VXLAN_BYTES;
                let inner = u16::from_be(ctx.load(frame + 12).unwrap_or(0));
                let at = frame + ETHERNET_BYTES;
                let probe = count_inner(ctx, at, inner, way, hop, Some(outer.remote));
                count(
                    skb,
                    way.key(outer.remote, encapsulation::VXLAN, port),
                    outer.is_first,
                    probe.is_some(),
                );
            } else if ports.is_probe() {
                record(ctx, outer.payload + UDP_BYTES, hop, false, &outer.remote);
            }
        }
        encapsulation::IPIP => {
            let probe = count_inner(ctx, outer.payload, IPV4, way, hop, Some(outer.remote));
            count(
                skb,
                way.key(outer.remote, encapsulation::IPIP, 0),
                outer.is_first,
                probe.is_some(),
            );
        }
        ICMP_V4 if way == Way::In && protocol == IPV4 => {
            unreachable_v4(ctx, &outer);
        }
        ICMP_V6 if way == Way::In && protocol == IPV6 => {
            unreachable_v6(ctx, &outer);
        }
        _ => {}
    }
    Some(())
}

/// Types of ICMP that quote a packet and mean that it was lost (RFC 792):
/// unreachable, time exceeded, parameter problem.
#[inline(always)]
fn unreachable_v4(ctx: &TcContext, outer: &Ip) -> Option<()> {
    let [kind, code, _, _, _, _, high, low]: [u8; 8] = ctx.load(outer.payload).ok()?;
    if !matches!(kind, 3 | 11 | 12) {
        return None;
    }
    let at = outer.payload + ICMP_BYTES;
    let quoted: Ipv4 = ctx.load(at).ok()?;
    let peer = Address::v4(u32::from_ne_bytes(quoted.destination));
    let mtu = if kind == 3 && code == 4 { u32::from(u16::from_be_bytes([high, low])) } else { 0 };
    error(ctx, outer, at + quoted.bytes(), quoted.protocol, peer, (4, kind, code, mtu))
}

/// Types 1 to 4 of ICMPv6 (RFC 4443): unreachable, too big, time exceeded,
/// parameter problem.
#[inline(always)]
fn unreachable_v6(ctx: &TcContext, outer: &Ip) -> Option<()> {
    let [kind, code, _, _, a, b, c, d]: [u8; 8] = ctx.load(outer.payload).ok()?;
    if !matches!(kind, 1..=4) {
        return None;
    }
    let at = outer.payload + ICMP_BYTES;
    let quoted: Ipv6 = ctx.load(at).ok()?;
    let mtu = if kind == 2 { u32::from_be_bytes([a, b, c, d]) } else { 0 };
    error(
        ctx,
        outer,
        at + IPV6_BYTES,
        quoted.next,
        Address(quoted.destination),
        (6, kind, code, mtu),
    )
}

/// Counts an ICMP error if the packet that it quotes is an outer one.
#[inline(always)]
fn error(
    ctx: &TcContext,
    outer: &Ip,
    quoted_payload: usize,
    quoted_protocol: u8,
    peer: Address,
    (version, kind, code, mtu): (u8, u8, u8, u32),
) -> Option<()> {
    let (encapsulation, port) = match quoted_protocol {
        encapsulation::IPIP => (encapsulation::IPIP, 0),
        UDP => {
            let ports: Ports = ctx.load(quoted_payload).ok()?;
            let port = ports.destination();
            if !is_vxlan(port) {
                return None;
            }
            (encapsulation::VXLAN, port)
        }
        _ => return None,
    };
    let from = outer.remote;
    let key = IcmpKey { peer, from, port, encapsulation, kind, code, version, pad: 0 };
    if let Some(icmp) = ICMP.get_ptr_mut(&key) {
        // SAFETY: a map's value stays valid while the program runs. Two
        // processors may lose a count: errors are few, and one is enough.
        let icmp = unsafe { &mut *icmp };
        icmp.errors = icmp.errors.wrapping_add(1);
        if mtu != 0 {
            icmp.mtu = mtu;
        }
        return Some(());
    }
    // Only what went to a peer: the rest is not ours to tell of.
    crate::maps::peer(&peer)?;
    if ICMP.insert(&key, &Icmp { errors: 1, mtu, pad: 0 }, 0).is_err() {
        miss(missed::ICMP);
    }
    Some(())
}
