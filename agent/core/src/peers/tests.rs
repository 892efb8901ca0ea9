//! Peers and their tunnels as the tables and the peers themselves tell of them.

use super::*;
use crate::model::{IfIndex, NeighbourState, NextHop, Route, RouteKey, protocol};

const NIC: IfIndex = IfIndex(2);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ipip(index: u32, name: &str, address: &str) -> Tunnel {
    Tunnel {
        name: name.to_owned(),
        encapsulation: Encapsulation::Ipip,
        vni: None,
        address: Some(ip(address)),
        ..tunnel(index, 0, 0)
    }
}

fn route(table: u32, to: &str, via: Option<&str>, device: IfIndex) -> Route {
    Route {
        key: RouteKey { table, destination: to.parse().unwrap(), metric: 0, tos: 0 },
        kind: RouteKind::Unicast,
        protocol: protocol::BIRD,
        source: None,
        next_hop: NextHop { gateway: via.map(ip), device: Some(device), onlink: true },
        more_next_hops: Vec::new(),
    }
}

/// The tables of a node at one moment, and what its peers say of themselves.
#[derive(Default)]
struct Tables {
    tunnels: Vec<Tunnel>,
    routes: RouteTable,
    neighbours: BTreeMap<(IfIndex, IpAddr), Neighbour>,
    fdb: BTreeMap<FdbKey, FdbEntry>,
    status: PeerStatus,
}

impl Tables {
    fn route(&mut self, table: u32, to: &str, via: Option<&str>, device: IfIndex) {
        let route = route(table, to, via, device);
        self.routes.0.insert(route.key, route);
    }

    /// What Felix programs for the VXLAN of one peer.
    fn vtep(&mut self, device: IfIndex, vtep: &str, underlay: &str) {
        let (index, address) = (device, ip(vtep));
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let state = NeighbourState::Permanent;
        let neighbour = Neighbour { index, address, mac: Some(mac), state };
        self.neighbours.insert((index, address), neighbour);
        let key = FdbKey { index, mac, destination: Some(ip(underlay)) };
        self.fdb.insert(key, FdbEntry { key, permanent: true, vni: None, port: None });
    }

    /// Tunnels and their targets, by peer; all peers are listed.
    fn resolve(&self, directory: &mut Directory, listed: &[&str]) -> Vec<Peer> {
        let listed: Vec<PeerListEntry> = listed
            .iter()
            .map(|address| PeerListEntry { address: ip(address), name: None, overlay: None })
            .collect();
        let evidence = Evidence {
            tunnels: &self.tunnels,
            addresses: &[],
            routes: &self.routes,
            neighbours: &self.neighbours,
            fdb: &self.fdb,
        };
        let status = |_| Some(&self.status);
        directory.resolve(Mono(0), SECOND, &listed, None, &evidence, status)
    }
}

fn led(peer: &Peer) -> Vec<(&str, Option<IpAddr>)> {
    peer.tunnels.iter().map(|leads| (leads.device.as_str(), leads.overlay)).collect()
}

fn tunnel(index: u32, port: u16, vni: u32) -> Tunnel {
    Tunnel::plain(IfIndex(index), &format!("tunnel.{index}"), port, vni)
}

#[test]
fn a_leftover_tunnel_is_not_paired_with_what_replaced_it() {
    let (flannel, calico) = (tunnel(1, 8472, 1), tunnel(2, 4789, 4096));
    let own = [flannel.clone(), calico.clone()];
    let there = [TunnelAdvert::from(&calico)];
    assert_eq!(counterpart(&flannel, &own, &there), None);
    assert_eq!(counterpart(&calico, &own, &there), Some(&there[0]));
    // On a node that has only the one, the two ends do not fit each other.
    assert_eq!(counterpart(&flannel, &own[..1], &there), Some(&there[0]));
}

#[test]
fn the_most_alike_is_the_counterpart() {
    let own = [tunnel(1, 8472, 1)];
    let there = [tunnel(1, 4789, 2), tunnel(2, 8472, 2)].map(|it| TunnelAdvert::from(&it));
    assert_eq!(counterpart(&own[0], &own, &there), Some(&there[1]));
}

#[test]
fn across_subnets_through_the_tunnel_and_within_one_without() {
    let tunl0 = ipip(3, "tunl0", "10.42.1.0");
    let mut tables = Tables { tunnels: vec![tunl0.clone()], ..Tables::default() };
    tables.route(table::MAIN, "10.42.2.0/26", Some("10.0.0.12"), NIC);
    tables.route(table::MAIN, "10.42.3.0/26", Some("10.0.1.13"), tunl0.index);
    let overlay = |to: &str| Tunnel { address: Some(ip(to)), ..tunl0.clone() };
    let mut directory = Directory::default();
    let mut of = |address: &str, to: &str| {
        tables.status.tunnels = vec![TunnelAdvert::from(&overlay(to))];
        tables.resolve(&mut directory, &[address]).remove(0)
    };
    let (near, far) = (of("10.0.0.12", "10.42.2.0"), of("10.0.1.13", "10.42.3.0"));
    assert_eq!(led(&near), []);
    // It may still send through its tunnel.
    assert_eq!(near.other_addresses, [ip("10.42.2.0")]);
    assert_eq!(led(&far), [("tunl0", Some(ip("10.42.3.0")))]);
    assert_eq!(far.other_addresses, Vec::<IpAddr>::new());
    assert_eq!(far.pod_networks, ["10.42.3.0/26".parse().unwrap()]);
}

#[test]
fn each_peer_has_a_tunnel_of_its_own() {
    let to = |index: u32, name: &str, remote: &str| Tunnel {
        remote: Some(ip(remote)),
        ..ipip(index, name, "10.42.1.1")
    };
    let (b, c) = (to(3, "tun-b", "10.0.0.12"), to(4, "tun-c", "10.0.0.13"));
    let mut tables = Tables { tunnels: vec![b, c], ..Tables::default() };
    tables.route(table::MAIN, "10.42.2.0/24", None, IfIndex(3));
    tables.route(table::MAIN, "10.42.3.0/24", None, IfIndex(4));
    // kube-router's table for what pods send.
    tables.route(77, "10.0.0.12/32", None, IfIndex(3));
    tables.status.tunnels = vec![TunnelAdvert::from(&ipip(9, "tun-a", "10.42.2.1"))];
    let found = tables.resolve(&mut Directory::default(), &["10.0.0.12", "10.0.0.13"]);
    assert_eq!(led(&found[0]), [("tun-b", Some(ip("10.42.2.1")))]);
    assert_eq!(found[0].pod_networks, ["10.42.2.0/24".parse().unwrap()]);
    assert_eq!(found[1].tunnels.len(), 1);
    assert_eq!(found[1].tunnels[0].device, "tun-c");
    // Nobody says which end is for whom: one that is up will do.
    let down = TunnelAdvert { up: false, ..tables.status.tunnels[0] };
    for there in [[down, tables.status.tunnels[0]], [tables.status.tunnels[0], down]] {
        assert!(counterpart(&tables.tunnels[0], &tables.tunnels, &there).unwrap().up);
    }
}

#[test]
fn a_network_that_changes_its_encapsulation_is_followed() {
    let tunl0 = ipip(3, "tunl0", "10.42.1.0");
    let calico = Tunnel { address: Some(ip("10.43.1.0")), ..tunnel(4, 4789, 4096) };
    let there = [
        TunnelAdvert { address: Some(ip("10.42.2.0")), ..TunnelAdvert::from(&tunl0) },
        TunnelAdvert { address: Some(ip("10.43.2.0")), ..TunnelAdvert::from(&calico) },
    ];
    let mut tables = Tables { tunnels: vec![tunl0, calico], ..Tables::default() };
    tables.status.tunnels = there.to_vec();
    tables.vtep(IfIndex(4), "10.43.2.0", "10.0.0.12");
    tables.route(table::MAIN, "10.42.2.0/26", Some("10.0.0.12"), IfIndex(3));
    tables.route(table::MAIN, "10.43.2.0/26", Some("10.43.2.0"), IfIndex(4));
    let mut directory = Directory::default();
    let both = [("tunl0", Some(ip("10.42.2.0"))), ("tunnel.4", Some(ip("10.43.2.0")))];
    assert_eq!(led(&tables.resolve(&mut directory, &["10.0.0.12"])[0]), both);
    // Felix has taken over the one block that was BIRD's.
    tables.route(table::MAIN, "10.42.2.0/26", Some("10.43.2.0"), IfIndex(4));
    let moved = tables.resolve(&mut directory, &["10.0.0.12"]).remove(0);
    assert_eq!(led(&moved), both[1..]);
    // The peer may not have, and sends from its old device's address.
    assert_eq!(moved.other_addresses, [ip("10.42.2.0")]);
    // Only one end is VXLAN's: what vanishes there is to be noticed.
    tables.status.tunnels.truncate(1);
    assert_eq!(led(&tables.resolve(&mut directory, &["10.0.0.12"])[0]), both);
}
