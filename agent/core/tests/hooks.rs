//! What the programs are to watch on a recorded node of the lab.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use overlaywatch_core::fact::{Fact, Gap};
use overlaywatch_core::hooks::plan;
use overlaywatch_core::kernel::HookPlan;
use overlaywatch_core::model::{Encapsulation, PeerId};
use overlaywatch_core::snapshot::Snapshot;

fn healthy() -> Snapshot {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/healthy-flannel-node-1");
    serde_json::from_str(&fs::read_to_string(case.join("now.json")).unwrap()).unwrap()
}

fn peer(address: &str) -> PeerId {
    PeerId(address.parse().unwrap())
}

fn names(plan: &HookPlan) -> Vec<(&str, Option<Encapsulation>, bool)> {
    plan.devices.iter().map(|d| (d.name.as_str(), d.tunnel, d.is_ethernet)).collect()
}

#[test]
fn the_tunnel_and_the_nic_below_it_are_watched() {
    let plan = plan(&healthy(), []);
    let vxlan = Encapsulation::Vxlan(8472);
    assert_eq!(names(&plan), [("eth0", None, true), ("flannel.1", Some(vxlan), true)]);
    // Not the bridge of the pods, and not lo.
    assert_eq!(plan.ports.into_iter().collect::<Vec<_>>(), [4789, 8472]);
}

#[test]
fn a_port_that_only_a_peer_uses_is_watched_too() {
    let mut snapshot = healthy();
    let mut peers = snapshot.peers.as_ref().clone();
    peers[0].tunnels[0].encapsulation = Encapsulation::Vxlan(8473);
    snapshot.peers = peers.into();
    assert!(plan(&snapshot, []).ports.contains(&8473));
}

#[test]
fn pods_belong_to_the_peer_behind_the_next_hop() {
    let other: IpAddr = "10.0.0.12".parse().unwrap();
    let plan = plan(&healthy(), [(other, peer("10.0.0.12"))]);
    let of = |net: &str| plan.peers.get(&net.parse().unwrap()).copied();
    assert_eq!(of("10.42.2.0/24"), Some(peer("10.0.0.12")));
    assert_eq!(of("10.42.3.0/24"), Some(peer("10.0.0.13")));
    assert_eq!(of("10.0.0.12/32"), Some(peer("10.0.0.12")));
    // Neither the default route nor this node's own pods are a peer's.
    assert_eq!((of("0.0.0.0/0"), of("10.42.1.0/24")), (None, None));
}

#[test]
fn pods_behind_a_tunnel_to_one_peer_belong_to_it_without_a_next_hop() {
    let mut snapshot = healthy();
    let mut tunnels = snapshot.tunnels.seen().unwrap().as_ref().clone();
    tunnels[0].encapsulation = Encapsulation::Ipip;
    tunnels[0].remote = Some("10.0.0.12".parse().unwrap());
    let mut routes = snapshot.routes.seen().unwrap().as_ref().clone();
    let network = "10.42.2.0/24".parse().unwrap();
    let (_, route) = routes.0.iter_mut().find(|(key, _)| key.destination == network).unwrap();
    route.next_hop.gateway = None;
    let at = snapshot.now.mono;
    snapshot.tunnels = Fact::Seen { value: tunnels.into(), at };
    snapshot.routes = Fact::Seen { value: routes.into(), at };
    assert_eq!(plan(&snapshot, []).peers.get(&network).copied(), Some(peer("10.0.0.12")));
}

#[test]
fn nothing_is_watched_where_devices_are_not_known() {
    let mut snapshot = healthy();
    snapshot.links = Fact::Missing(Gap::Denied);
    assert_eq!(names(&plan(&snapshot, [])), []);
}
