//! Tunnel addresses that more than one node has.

use std::net::IpAddr;

use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::finding::{Confidence, Direction, Evidence, Finding, Subject};
use crate::ladder::{Hop, Segment};
use crate::model::{IfIndex, Link, Peer, PeerTunnel, Route, RouteKind, RouteTable, Tunnel, table};

/// Peers that one finding names.
const MOST_NAMED: usize = 4;

/// A tunnel that leads to a peer's address.
struct Claim<'a> {
    address: IpAddr,
    tunnel: &'a Tunnel,
    peer: &'a Peer,
    leads: &'a PeerTunnel,
}

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let (Some(tunnels), Some(routes)) = (context.now.tunnels.seen(), context.now.routes.seen())
    else {
        return verdicts.blind(&[Code::TunnelAddressDuplicate]);
    };
    let mut claims: Vec<Claim<'_>> = context
        .tunnelled_peers()
        .filter(|(peer, _, _)| !peer.has_departed())
        .filter_map(|(peer, leads, tunnel)| {
            Some(Claim { address: leads.overlay?, tunnel, peer, leads })
        })
        .collect();
    claims.sort_unstable_by_key(|claim| (claim.tunnel.index, claim.address, claim.peer.id));
    let is_one = |one: &Claim<'_>, other: &Claim<'_>| {
        (one.tunnel.index, one.address) == (other.tunnel.index, other.address)
    };
    for group in claims.chunk_by(is_one) {
        let Some(first) = group.first() else { continue };
        let is_own = first.tunnel.address == Some(first.address);
        if !is_own && group.len() < 2 {
            continue;
        }
        let nodes = nodes(context, group, tunnels);
        if nodes.len() + usize::from(is_own) > 1 {
            let is_led_here = is_own && is_own_network(context, routes, first.address);
            judge_group(&nodes, is_own, is_led_here, verdicts);
        }
    }
}

/// Those of a group that say so themselves, each node once: it may be known by two
/// addresses, even this one.
fn nodes<'g, 'a>(
    context: &Context<'_>,
    group: &'g [Claim<'a>],
    tunnels: &[Tunnel],
) -> Vec<&'g Claim<'a>> {
    let mut epochs = Vec::new();
    let says_so = |claim: &&Claim<'_>| {
        let told = context.counterpart(claim.peer, claim.tunnel, tunnels);
        let status = context.pair(claim.peer).and_then(|pair| pair.status.as_ref());
        let Some((_, status)) = status else { return false };
        let is_this_node = status.node.is_some() && status.node == context.now.node.name;
        // What a node said that has left meanwhile may be another one's now.
        let is_told = told.is_some_and(|told| told.address == Some(claim.address))
            && context.is_alive(claim.peer)
            && !is_this_node
            && !epochs.contains(&status.epoch);
        epochs.extend(is_told.then_some(status.epoch));
        is_told
    };
    group.iter().filter(says_so).collect()
}

/// Whether an address is of this node's own pods' network.
fn is_own_network(context: &Context<'_>, routes: &RouteTable, address: IpAddr) -> bool {
    let links = context.now.links.seen();
    let leads_to_pods =
        |index: IfIndex| links.and_then(|links| links.get(&index)).is_some_and(Link::leads_to_pods);
    let of_pods = |route: &Route| match route.kind {
        // Calico keeps its own block so.
        RouteKind::Blackhole => true,
        RouteKind::Unicast => route.next_hop.device.is_some_and(leads_to_pods),
        _ => false,
    };
    routes.0.values().any(|route| {
        let destination = route.key.destination;
        let is_network = destination.prefix_len() > 0 && destination.contains(&address);
        route.key.table == table::MAIN && is_network && of_pods(route)
    })
}

/// Peers that have one address, which this node may have, too. Nothing is said of
/// an address that is of no pods' network: all nodes may share it on purpose, as
/// that of a service (LVS's tunnelling).
fn judge_group(group: &[&Claim<'_>], is_own: bool, is_led_here: bool, verdicts: &mut Verdicts) {
    let closest =
        group.iter().filter_map(|claim| Some((claim.peer.prefix_of(claim.address)?, claim)));
    let owner = closest.max_by_key(|(prefix, _)| *prefix).map(|(_, claim)| claim.peer.id);
    let finding = |claim: &Claim<'_>, subject, direction, hop| Finding {
        code: Code::TunnelAddressDuplicate,
        subject,
        direction,
        hop,
        evidence: vec![Evidence::TunnelAddress {
            address: claim.address,
            here: is_own,
            peers: group.iter().take(MOST_NAMED).map(|claim| claim.peer.id).collect(),
            owner,
        }],
        confidence: Confidence::Certain,
    };
    let hop = match (is_own, owner, group.first()) {
        // This node's packets bear the address of another one: all answers go there,
        // and whoever gets them takes them for the other one's.
        (true, Some(_), Some(claim)) => {
            let subject = Subject::Device { name: claim.tunnel.name.clone() };
            return verdicts.add(finding(claim, subject, None, None));
        }
        // Both take what is for the other for their own, at last.
        (true, None, _) if is_led_here => Segment { from: Hop::Sent, to: Hop::Delivered },
        (false, Some(_), _) => Segment { from: Hop::LeftNic, to: Hop::Delivered },
        _ => return,
    };
    for claim in group.iter().filter(|claim| Some(claim.peer.id) != owner) {
        let encapsulation = Some(claim.leads.encapsulation);
        let subject = Subject::Pair { peer: claim.peer.id, encapsulation };
        verdicts.add(finding(claim, subject, Some(Direction::Both), Some(hop)));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::delta::Delta;
    use crate::fact::Fact;
    use crate::model::{Encapsulation, NextHop, Origin, PeerId, RouteKey, Tunnel};
    use crate::pairs::{PairView, StreamView};
    use crate::probing::{PeerStatus, Stream, TunnelAdvert};
    use crate::snapshot::Snapshot;
    use crate::time::{Mono, Now, SECOND};

    const AT: Mono = Mono(60 * SECOND);
    const TUNNEL: IfIndex = IfIndex(3);

    fn overlay(node: u8) -> IpAddr {
        [10, 42, node, 0].into()
    }

    fn tunnel(address: IpAddr) -> Tunnel {
        Tunnel {
            encapsulation: Encapsulation::Ipip,
            vni: None,
            address: Some(address),
            ..Tunnel::plain(TUNNEL, "tunl0", 0, 0)
        }
    }

    fn peer(node: u8) -> Peer {
        Peer {
            id: PeerId([10, 0, 0, node].into()),
            name: None,
            origin: Origin::File,
            tunnels: vec![PeerTunnel {
                index: TUNNEL,
                device: "tunl0".to_owned(),
                encapsulation: Encapsulation::Ipip,
                overlay: Some(overlay(node)),
                mac: None,
            }],
            other_addresses: Vec::new(),
            pod_networks: vec![format!("10.42.{node}.0/26").parse().unwrap()],
            departed_since: None,
        }
    }

    /// A peer whose address is known from what it says.
    fn led(node: u8, address: IpAddr) -> Peer {
        let mut peer = peer(node);
        peer.tunnels[0].overlay = Some(address);
        peer
    }

    /// What a peer said a second ago of its address, as the agent of this number.
    fn pair(address: IpAddr, epoch: u64) -> Arc<PairView> {
        let heard = Mono(AT.0 - SECOND);
        let status = PeerStatus {
            epoch,
            tunnels: vec![TunnelAdvert::from(&tunnel(address))],
            ..PeerStatus::default()
        };
        let view = StreamView { last_answer: Some(heard), ..StreamView::default() };
        let streams = BTreeMap::from([(Stream::Underlay, Box::new(view))]);
        Arc::new(PairView { streams, status: Some((heard, status)), ..PairView::default() })
    }

    fn fact<T>(value: T) -> Fact<Arc<T>> {
        Fact::Seen { value: Arc::new(value), at: AT }
    }

    /// Node 1 of three, which has an address and told so: nodes 2 and 3 say that
    /// they have these, as agents of these numbers.
    fn node_1(own: IpAddr, [second, third]: [(IpAddr, u64); 2]) -> Snapshot {
        let block = Route {
            key: RouteKey {
                table: table::MAIN,
                destination: "10.42.1.0/26".parse().unwrap(),
                metric: 0,
                tos: 0,
            },
            kind: RouteKind::Blackhole,
            protocol: 12,
            source: None,
            next_hop: NextHop { gateway: None, device: None, onlink: false },
            more_next_hops: Vec::new(),
        };
        Snapshot {
            now: Now { mono: AT, ..Now::default() },
            tunnels: fact(vec![tunnel(own)]),
            routes: fact(RouteTable(BTreeMap::from([(block.key, block)]))),
            peers: Arc::new(vec![led(2, second.0), led(3, third.0)]),
            pairs: BTreeMap::from([
                (peer(2).id, pair(second.0, second.1)),
                (peer(3).id, pair(third.0, third.1)),
            ]),
            ..Snapshot::default()
        }
    }

    fn said(now: &Snapshot) -> Vec<(Subject, String)> {
        let context = Context { delta: Delta { before: None, now }, now, digest: None };
        let mut verdicts = Verdicts::default();
        judge(&context, &mut verdicts);
        assert!(verdicts.blind.is_empty());
        let text = |finding: &Finding| finding.evidence[0].to_string();
        verdicts.findings.iter().map(|found| (found.subject.clone(), text(found))).collect()
    }

    fn of_pair(node: u8) -> Subject {
        Subject::Pair { peer: peer(node).id, encapsulation: Some(Encapsulation::Ipip) }
    }

    #[test]
    fn who_has_anothers_address_says_it_of_its_device() {
        let now = node_1(overlay(2), [(overlay(2), 2), (overlay(3), 3)]);
        let text = "10.42.2.0 is the tunnel address of this node and 10.0.0.2, and routes lead it \
                    to 10.0.0.2";
        let device = Subject::Device { name: "tunl0".to_owned() };
        assert_eq!(said(&now), [(device, text.to_owned())]);
    }

    #[test]
    fn whose_address_another_one_has_says_it_of_the_pair() {
        let now = node_1(overlay(1), [(overlay(1), 2), (overlay(3), 3)]);
        let text = "10.42.1.0 is the tunnel address of this node and 10.0.0.2";
        assert_eq!(said(&now), [(of_pair(2), text.to_owned())]);
    }

    #[test]
    fn a_third_node_says_it_of_the_one_to_which_no_route_leads() {
        let now = node_1(overlay(1), [(overlay(2), 2), (overlay(2), 3)]);
        let text = "10.42.2.0 is the tunnel address of 10.0.0.2 and 10.0.0.3, and routes lead it \
                    to 10.0.0.2";
        assert_eq!(said(&now), [(of_pair(3), text.to_owned())]);
    }

    #[test]
    fn an_address_of_each_and_that_of_a_service_are_fine() {
        let each = node_1(overlay(1), [(overlay(2), 2), (overlay(3), 3)]);
        assert_eq!(said(&each), []);
        let service = [192, 0, 2, 80].into();
        assert_eq!(said(&node_1(service, [(service, 2), (service, 3)])), []);
    }

    #[test]
    fn one_node_by_two_addresses_is_one() {
        assert_eq!(said(&node_1(overlay(1), [(overlay(2), 2), (overlay(2), 2)])), []);
    }

    #[test]
    fn what_a_node_said_that_is_gone_is_no_more() {
        let mut now = node_1(overlay(1), [(overlay(2), 2), (overlay(2), 3)]);
        now.now.mono = Mono(AT.0 + 6 * SECOND);
        assert_eq!(said(&now), []);
    }
}
