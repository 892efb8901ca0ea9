//! Live traffic with a peer that this node drops nearly all of, inside the
//! tunnel: common ground of the rules that speak of it.

use crate::kernel::{DropForm, KernelCounts, PacketDrop};
use crate::model::{Peer, PeerTunnel};

/// Dropped packets of live traffic below which nothing is said.
const LIVE_DROPS: u64 = 10;
/// Of the live traffic with a peer, so much must be dropped, in per cent: a
/// network policy drops some of it, a broken host all.
const LIVE_SHARE: u64 = 90;
/// Functions that take packets out of tunnels, and drop some before these have the
/// tunnel's device (net/ipv4/ip_tunnel.c, net/ipv6/ip6_tunnel.c, drivers/net/vxlan).
const DECAPSULATING: [&str; 3] = ["ip_tunnel_rcv", "ip6_tnl_rcv", "vxlan_rcv"];
/// EtherTypes of packets that pods send each other; the rest is the host's own noise.
const IP: [u16; 2] = [0x0800, 0x86dd];

/// Nearly all of the live traffic with a peer, one way.
pub(super) struct Dropped<'a> {
    /// Most of it was dropped as this says.
    pub(super) worst: &'a PacketDrop,
    /// Dropped packets.
    pub(super) packets: u64,
    /// Packets that passed the tunnel's hooks, to the peer.
    pub(super) outbound: u64,
    /// From it.
    pub(super) inbound: u64,
}

/// What is dropped of the traffic that a tunnel leads to a peer or brings from it;
/// `is_nic` tells the devices below tunnels by name.
pub(super) fn dropped<'a>(
    counts: &'a KernelCounts,
    peer: &Peer,
    leads: &PeerTunnel,
    outbound: bool,
    is_nic: impl Fn(&str) -> bool,
) -> Option<Dropped<'a>> {
    let is_live = |drop: &&PacketDrop| {
        drop.form == DropForm::Inner
            && drop.probe.is_none()
            && drop.peer == Some(peer.id)
            && drop.outbound == outbound
            && IP.contains(&drop.ethertype)
            && !drop.site.is_of_socket()
            && (outbound || !came_bare(drop, &is_nic))
    };
    let drops: u64 = sum(&mut counts.drops.iter().filter(is_live).map(|drop| drop.lately));
    // As a rule there is nothing, and the traffic is that of all peers.
    if drops < LIVE_DROPS {
        return None;
    }
    let passed = |way: bool| -> u64 {
        let with_peer = counts.traffic.iter().filter(|t| t.peer == peer.id.0);
        let here = with_peer.filter(|t| t.encapsulation == leads.encapsulation);
        sum(&mut here.filter(|t| t.outbound == way).map(|t| t.lately))
    };
    // What leaves is counted after the drop, what comes in before it.
    let all = if outbound { drops.saturating_add(passed(true)) } else { passed(false).max(drops) };
    if drops.saturating_mul(100) < all.saturating_mul(LIVE_SHARE) {
        return None;
    }
    let worst = counts.drops.iter().filter(is_live).max_by_key(|drop| drop.lately)?;
    Some(Dropped { worst, packets: drops, outbound: passed(true), inbound: passed(false) })
}

/// Whether it came in by the NIC as it was, with the address of a pod of the peer's:
/// through no tunnel.
pub(super) fn came_bare(drop: &PacketDrop, is_nic: impl Fn(&str) -> bool) -> bool {
    let function = drop.site.function.as_deref().unwrap_or_default();
    drop.form == DropForm::Inner
        && !drop.outbound
        && drop.site.device.as_deref().is_some_and(is_nic)
        && !DECAPSULATING.contains(&function)
}

fn sum(numbers: &mut dyn Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}
