//! VXLAN's two look-ups after the route: the peer's overlay address to a MAC,
//! and the MAC to the node behind which it is.

use std::net::IpAddr;

use super::{Context, Verdicts, before_encapsulation};
use crate::catalog::Code;
use crate::finding::{Confidence, Direction, Evidence, Finding, Subject};
use crate::ladder::{Hop, Segment};
use crate::model::{
    Encapsulation, FdbKey, Mac, Neighbour, NeighbourState, Peer, PeerId, PeerTunnel,
};

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let (Some(neighbours), Some(fdb)) = (context.now.neighbours.seen(), context.now.fdb.seen())
    else {
        return verdicts.blind(&[
            Code::VtepNeighbourMissing,
            Code::FdbMissing,
            Code::FdbMisdirected,
        ]);
    };
    for (peer, leads, tunnel) in context.tunnelled_peers() {
        // A learning device and one with a default destination resolve by asking.
        let resolves_alone = tunnel.learning || tunnel.collect_metadata || tunnel.remote.is_some();
        let is_vxlan = matches!(tunnel.encapsulation, Encapsulation::Vxlan(_));
        if !is_vxlan || resolves_alone || !tunnel.up || peer.has_departed() {
            continue;
        }
        let Some(overlay) = leads.overlay else { continue };
        let entries = |mac: Mac| {
            let first = FdbKey { index: tunnel.index, mac, destination: None };
            fdb.range(first..)
                .map(|(key, _)| key)
                .take_while(move |key| key.index == tunnel.index && key.mac == mac)
        };
        let has_entry = |mac: Mac| entries(mac).next().is_some();
        if has_entry(Mac::ZERO) {
            continue;
        }
        // The gateway of the route is what the kernel resolves.
        let gateway = context
            .now
            .routes
            .seen()
            .and_then(|routes| super::lookup(context.now, routes, overlay))
            .filter(|route| route.next_hop.device == Some(tunnel.index))
            .and_then(|route| route.next_hop.gateway)
            .unwrap_or(overlay);
        let neighbour = neighbours.get(&(tunnel.index, gateway));
        let Some(mac) = neighbour.and_then(usable_mac) else {
            verdicts.add(before_encapsulation(
                Code::VtepNeighbourMissing,
                peer,
                leads,
                vec![Evidence::Neighbour {
                    address: gateway,
                    device: tunnel.name.clone(),
                    state: neighbour.map(|neighbour| neighbour.state),
                }],
            ));
            continue;
        };
        let destinations: Vec<IpAddr> = entries(mac).filter_map(|key| key.destination).collect();
        // Another address of the same peer is no fault, nor is a detour through
        // another gateway; the peer's own MAC behind another peer is.
        let misdirected = destinations
            .iter()
            .filter(|_| gateway == overlay)
            .find(|&&to| to != peer.id.0 && context.is_peer(PeerId(to)))
            .filter(|_| !destinations.contains(&peer.id.0));
        if let Some(&destination) = misdirected {
            let evidence = Evidence::FdbEntry { mac, device: tunnel.name.clone(), destination };
            // Encapsulated, and sent to another node: it leaves and never arrives.
            let hop = Segment { from: Hop::LeftNic, to: Hop::ReachedNic };
            verdicts.add(on_the_way_out(Code::FdbMisdirected, peer, leads, hop, evidence));
        } else if !has_entry(mac) {
            let evidence = Evidence::NoFdbEntry { mac, device: tunnel.name.clone() };
            let hop = Segment { from: Hop::Encapsulated, to: Hop::LeftNic };
            verdicts.add(on_the_way_out(Code::FdbMissing, peer, leads, hop, evidence));
        }
    }
}

fn usable_mac(neighbour: &Neighbour) -> Option<Mac> {
    // An entry that is being asked for right now is judged when the asking ended.
    let usable = neighbour.state.is_usable() || neighbour.state == NeighbourState::Incomplete;
    neighbour.mac.filter(|_| usable)
}

fn on_the_way_out(
    code: Code,
    peer: &Peer,
    leads: &PeerTunnel,
    hop: Segment,
    evidence: Evidence,
) -> Finding {
    Finding {
        code,
        subject: Subject::Pair { peer: peer.id, encapsulation: Some(leads.encapsulation) },
        direction: Some(Direction::Outbound),
        hop: Some(hop),
        evidence: vec![evidence],
        confidence: Confidence::Certain,
    }
}
