//! What the eBPF programs are to watch: a function of what was observed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::kernel::{HookPlan, HookedDevice};
use crate::model::{Encapsulation, IfIndex, PeerId};
use crate::snapshot::Snapshot;

/// VXLAN ports that are always watched: IANA's and the kernel's older default.
/// A peer whose device is gone still sends to them.
const USUAL_PORTS: [u16; 2] = [4789, 8472];

/// The plan for what was observed; `addresses` are those of all peers.
#[must_use]
pub fn plan(
    snapshot: &Snapshot,
    addresses: impl IntoIterator<Item = (IpAddr, PeerId)>,
) -> HookPlan {
    let peers = pods(snapshot).chain(addresses.into_iter().map(|(a, peer)| (a.into(), peer)));
    HookPlan { devices: devices(snapshot), ports: ports(snapshot), peers: peers.collect() }
}

/// The devices of the plan.
#[must_use]
pub fn devices(snapshot: &Snapshot) -> Vec<HookedDevice> {
    let tunnels = snapshot.tunnels.seen().map_or(&[][..], |tunnels| tunnels.as_slice());
    let links = snapshot.links.seen();
    let device = |index: IfIndex, tunnel: Option<Encapsulation>| {
        let link = links?.get(&index)?;
        let is_ethernet = link.mac.is_some();
        Some(HookedDevice { index, name: link.name.clone(), tunnel, is_ethernet })
    };
    let mut devices: Vec<HookedDevice> = tunnels
        .iter()
        .filter_map(|tunnel| device(tunnel.index, Some(tunnel.encapsulation)))
        .chain(snapshot.underlays.iter().filter_map(|&index| device(index, None)))
        .collect();
    devices.sort_unstable();
    devices.dedup_by_key(|device| device.index);
    devices
}

/// The ports of the plan: those that are usual, of this node's tunnels, and of
/// those that peers tell of.
#[must_use]
pub fn ports(snapshot: &Snapshot) -> BTreeSet<u16> {
    let tunnels = snapshot.tunnels.seen().map_or(&[][..], |tunnels| tunnels.as_slice());
    let own = tunnels.iter().map(|tunnel| tunnel.encapsulation);
    let led = snapshot.peers.iter().flat_map(|p| p.tunnels.iter().map(|t| t.encapsulation));
    let told = snapshot.pairs.values().filter_map(|pair| pair.status.as_ref());
    let told = told.flat_map(|(_, status)| status.tunnels.iter().map(|t| t.encapsulation));
    let ports = own.chain(led).chain(told).filter_map(|encapsulation| match encapsulation {
        Encapsulation::Vxlan(port) => Some(port),
        Encapsulation::Ipip => None,
    });
    ports.chain(USUAL_PORTS).collect()
}

/// Networks that routes through a tunnel lead to, with the peer that the next
/// hop or the device belongs to. A default route is no network of anybody's.
fn pods(snapshot: &Snapshot) -> impl Iterator<Item = (IpNet, PeerId)> {
    let mut by_gateway = BTreeMap::new();
    for peer in snapshot.peers.iter() {
        for leads in &peer.tunnels {
            by_gateway.insert((leads.index, peer.id.0), peer.id);
            if let Some(overlay) = leads.overlay {
                by_gateway.insert((leads.index, overlay), peer.id);
            }
        }
    }
    let tunnels = snapshot.tunnels.seen().map_or(&[][..], |tunnels| tunnels.as_slice());
    let by_device: BTreeMap<IfIndex, PeerId> =
        tunnels.iter().filter_map(|tunnel| Some((tunnel.index, tunnel.only_peer()?))).collect();
    let routes = snapshot.routes.seen().into_iter().flat_map(|routes| routes.0.values());
    routes.filter_map(move |route| {
        let device = route.next_hop.device?;
        let of_gateway = |gateway| by_gateway.get(&(device, gateway));
        let peer =
            *route.next_hop.gateway.and_then(of_gateway).or_else(|| by_device.get(&device))?;
        (route.key.destination.prefix_len() > 0).then_some((route.key.destination, peer))
    })
}
