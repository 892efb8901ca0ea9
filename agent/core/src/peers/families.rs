//! Nodes with an underlay of each family of addresses, as flannel has it there.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::model::NeighbourState;

/// What the kernel of node 1 has of node 2, in a cluster where both have an
/// underlay of each family, as flannel programs it.
struct DualStack {
    tunnels: [Tunnel; 2],
    neighbours: BTreeMap<(IfIndex, IpAddr), Neighbour>,
    fdb: BTreeMap<FdbKey, FdbEntry>,
}

const V4: PeerId = PeerId(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 12)));
const V6: PeerId = PeerId(IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0x12)));

impl DualStack {
    fn new() -> Self {
        let mut all = Self {
            tunnels: [
                end("flannel.1", 1, "10.0.0.11", "10.42.1.0"),
                end("flannel-v6.1", 2, "fd00:10::11", "fd00:42:1::"),
            ],
            neighbours: BTreeMap::new(),
            fdb: BTreeMap::new(),
        };
        for (index, overlay, underlay) in
            [(1_u8, "10.42.2.0", V4), (2, "fd00:42:2::", V6), (2, "fe80::46", V6)]
        {
            let mac = Mac([0xe, 0x42, 0, 0, index, 2]);
            let index = IfIndex(index.into());
            let address: IpAddr = overlay.parse().unwrap();
            let state = NeighbourState::Permanent;
            let neighbour = Neighbour { index, address, mac: Some(mac), state };
            all.neighbours.insert((index, address), neighbour);
            let key = FdbKey { index, mac, destination: Some(underlay.0) };
            all.fdb.insert(key, FdbEntry { key, permanent: true, vni: None, port: None });
        }
        all
    }

    /// The peers beside a list of these, of whom each tells of both of its tunnels:
    /// their addresses, devices, and overlay addresses.
    fn peers(&self, listed: Option<&[PeerId]>) -> Vec<(PeerId, Vec<(String, IpAddr)>)> {
        let there = [
            end("flannel.1", 5, "10.0.0.12", "10.42.2.0"),
            end("flannel-v6.1", 6, "fd00:10::12", "fd00:42:2::"),
        ];
        let tunnels = there.iter().map(TunnelAdvert::from).collect();
        let status = PeerStatus { tunnels, ..PeerStatus::default() };
        let entry = |id: &PeerId| PeerListEntry { address: id.0, name: None, overlay: None };
        let listed: Option<Vec<_>> = listed.map(|all| all.iter().map(entry).collect());
        let evidence = Evidence {
            tunnels: &self.tunnels,
            addresses: &[],
            routes: &RouteTable::default(),
            neighbours: &self.neighbours,
            fdb: &self.fdb,
        };
        let status = |_| Some(&status);
        let peers = Directory::default().resolve(
            Mono(1),
            SECOND,
            &[],
            listed.as_deref(),
            &evidence,
            status,
        );
        // What is the other family's is not this peer's: nobody could answer for it.
        assert!(peers.iter().all(|peer| peer.other_addresses.is_empty()), "{peers:?}");
        let leads = |leads: PeerTunnel| Some((leads.device, leads.overlay?));
        peers
            .into_iter()
            .map(|peer| (peer.id, peer.tunnels.into_iter().filter_map(leads).collect()))
            .collect()
    }
}

/// An end of flannel's tunnel.
fn end(name: &str, index: u32, local: &str, address: &str) -> Tunnel {
    Tunnel {
        local: Some(local.parse().unwrap()),
        address: Some(address.parse().unwrap()),
        ..Tunnel::plain(IfIndex(index), name, 8472, 1)
    }
}

#[test]
fn each_family_of_the_underlay_is_a_peer_with_a_tunnel_of_its_own() {
    let both = [
        (V4, vec![("flannel.1".to_owned(), "10.42.2.0".parse().unwrap())]),
        (V6, vec![("flannel-v6.1".to_owned(), "fd00:42:2::".parse().unwrap())]),
    ];
    let node = DualStack::new();
    assert_eq!(node.peers(None), both);
    assert_eq!(node.peers(Some(&[V4, V6])), both);
    // A list that names a node once speaks of that family alone.
    assert_eq!(node.peers(Some(&[V4])), both);
    assert_eq!(node.peers(Some(&[V6])), both);
}

#[test]
fn a_list_has_the_last_word_on_the_families_that_it_names() {
    let node = DualStack::new();
    let [third, fourth] = ["10.0.0.13", "fd00:10::13"].map(|a| PeerId(a.parse().unwrap()));
    let ids = |listed: &[PeerId]| {
        node.peers(Some(listed)).into_iter().map(|(id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&[]), []);
    assert_eq!(ids(&[third]), [third, V6]);
    assert_eq!(ids(&[third, fourth]), [third, fourth]);
    // Tunnels of nobody known may lead to anybody.
    let mut node = DualStack::new();
    node.tunnels[1].name = "vxlan6".to_owned();
    let ids: Vec<_> = node.peers(Some(&[V4])).into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, [V4]);
}

#[test]
fn without_an_address_the_family_of_outer_packets_tells() {
    let at = |local: &str, address: Option<&str>| Tunnel {
        local: Some(local.parse().unwrap()),
        address: address.map(|address| address.parse().unwrap()),
        ..Tunnel::plain(IfIndex(1), "tunnel.1", 8472, 1)
    };
    let v4 = at("10.0.0.12", Some("10.42.2.0"));
    let v6 = at("fd00:10::12", Some("fd00:42:2::"));
    for there in [[&v4, &v6], [&v6, &v4]].map(|both| both.map(TunnelAdvert::from)) {
        let address = |own: Tunnel| {
            let all = [own.clone()];
            counterpart(&own, &all, &there).and_then(|advert| advert.address)
        };
        assert_eq!(address(at("10.0.0.11", None)), v4.address);
        assert_eq!(address(at("fd00:10::11", None)), v6.address);
        assert_eq!(address(at("fd00:10::11", Some("fd00:42:1::"))), v6.address);
    }
}
