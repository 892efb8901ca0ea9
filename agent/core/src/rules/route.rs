//! Routes to the peers' overlay: there, through the tunnel, and not a trap.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Context, Verdicts, before_encapsulation, lookup};
use crate::catalog::Code;
use crate::finding::Evidence;
use crate::model::{Peer, Route, RouteKey, RouteKind, RouteTable, Tunnel, table};
use crate::probing::Stream;
use crate::time::{Mono, SECOND};

/// A node that leaves cleanly may still answer for this long.
const LEAVING_NS: u64 = 10 * SECOND;

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let Some(routes) = context.now.routes.seen() else {
        return verdicts.blind(&[
            Code::RouteMissing,
            Code::RouteBlackhole,
            Code::RouteBypassesTunnel,
        ]);
    };
    for (peer, leads, tunnel) in context.tunnelled_peers() {
        if !tunnel.up || (peer.has_departed() && !lost_with_all_others(context, peer)) {
            continue;
        }
        let Some(overlay) = leads.overlay else { continue };
        let route = lookup(context.now, routes, overlay);
        // Where the kernel itself said, that is judged (`answers`).
        let answer = context.now.lookups.seen().and_then(|all| all.of_host(peer.id, overlay));
        let wrong = match answer {
            Some(_) if !peer.has_departed() => None,
            _ => judge_route(route, peer, tunnel),
        };
        if let Some(code) = wrong {
            let evidence = vec![evidence(context, overlay, route)];
            verdicts.add(before_encapsulation(code, peer, leads, evidence));
        } else if let Some(trap) = trap_within(routes, &peer.pod_networks) {
            let address = trap.key.destination.addr();
            let evidence = vec![evidence(context, address, Some(trap))];
            verdicts.add(before_encapsulation(Code::RouteBlackhole, peer, leads, evidence));
        }
    }
}

/// A peer that the kernel alone named and no longer knows has left the cluster,
/// as a rule. Unless all of them vanished at once and this one still answers:
/// then this node lost its entries.
fn lost_with_all_others(context: &Context<'_>, peer: &Peer) -> bool {
    let answers_since = |departed: Mono| {
        context
            .stream(peer, Stream::Underlay)
            .and_then(|view| view.last_answer)
            .is_some_and(|at| at.since(departed) > LEAVING_NS)
    };
    context.now.peers.iter().all(Peer::has_departed)
        && context.is_alive(peer)
        && peer.departed_since.is_some_and(answers_since)
}

fn judge_route(route: Option<&Route>, peer: &Peer, tunnel: &Tunnel) -> Option<Code> {
    let Some(route) = route else { return Some(Code::RouteMissing) };
    match route.kind {
        RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit => {
            Some(Code::RouteBlackhole)
        }
        RouteKind::Unicast => {
            let hops = std::iter::once(&route.next_hop).chain(&route.more_next_hops);
            let into_tunnel = hops.clone().any(|hop| hop.device == Some(tunnel.index));
            // host-gw and CrossSubnet route through the peer itself on purpose.
            let through_peer = hops.clone().any(|hop| hop.gateway == Some(peer.id.0));
            if into_tunnel || through_peer {
                None
            } else if route.key.destination.prefix_len() == 0 {
                // Only the default route is left: the peer's own is missing.
                Some(Code::RouteMissing)
            } else {
                Some(Code::RouteBypassesTunnel)
            }
        }
        RouteKind::Local | RouteKind::Throw | RouteKind::Other(_) => None,
    }
}

/// A route within the peer's own networks that drops packets.
fn trap_within<'a>(routes: &'a RouteTable, networks: &[IpNet]) -> Option<&'a Route> {
    networks.iter().find_map(|network| {
        let key = |destination| RouteKey { table: table::MAIN, destination, metric: 0, tos: 0 };
        let last = IpNet::from(network.broadcast());
        routes
            .0
            .range(key(*network)..)
            .map(|(_, route)| route)
            .take_while(|route| {
                route.key.table == table::MAIN && route.key.destination.addr() <= last.addr()
            })
            .find(|route| {
                network.contains(&route.key.destination)
                    && matches!(
                        route.kind,
                        RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit
                    )
            })
    })
}

fn evidence(context: &Context<'_>, to: IpAddr, route: Option<&Route>) -> Evidence {
    Evidence::Route {
        to,
        destination: route.map(|route| route.key.destination),
        route: route.map(|route| route.kind),
        device: route.and_then(|r| r.next_hop.device).map(|index| context.device_name(index)),
    }
}
