//! What the kernel itself answers on the way to each peer: right for whatever
//! policy rules and tables there are, where `route` can only imitate them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Context, Verdicts, before_encapsulation};
use crate::catalog::Code;
use crate::finding::{Direction, Evidence, Finding};
use crate::ladder::{Hop, Segment};
use crate::model::{
    FoundRoute, Link, LinkKind, Lookups, Owner, Peer, PeerId, PeerTunnel, PolicyRule, Route,
    RouteAnswer, RouteKind, RouteQuestion, RouteTable, Tunnel, table,
};

/// Error numbers of refusals (asm-generic/errno.h).
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const ENETUNREACH: i32 = 101;
const EHOSTUNREACH: i32 = 113;

const CODES: &[Code] =
    &[Code::PolicyRuleDiverts, Code::LeftoverRoute, Code::HostSourceWithoutTunnelAddress];

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let now = context.now;
    let (Some(lookups), Some(routes), Some(rules)) =
        (now.lookups.seen(), now.routes.seen(), now.rules.seen())
    else {
        return verdicts.blind(CODES);
    };
    let tables = Tables { routes, rules };
    for (peer, leads, tunnel) in context.tunnelled_peers() {
        if !tunnel.up || peer.has_departed() {
            continue;
        }
        if let Some(finding) = judge_peer(context, lookups, &tables, peer, leads, tunnel) {
            verdicts.add(finding);
        }
    }
}

/// The tables that tell why the kernel answers as it does.
struct Tables<'a> {
    routes: &'a RouteTable,
    rules: &'a [PolicyRule],
}

fn judge_peer(
    context: &Context<'_>,
    lookups: &Lookups,
    tables: &Tables<'_>,
    peer: &Peer,
    leads: &PeerTunnel,
    tunnel: &Tunnel,
) -> Option<Finding> {
    let known = lookups.0.get(&peer.id)?;
    // Another tunnel's address of the peer is that tunnel's matter.
    let foreign = |to: IpAddr| {
        let others = peer.tunnels.iter().filter(|other| other.index != leads.index);
        leads.overlay != Some(to) && others.filter_map(|other| other.overlay).any(|o| o == to)
    };
    let own = || known.answers.iter().filter(|(question, _)| !foreign(question.to));
    let wrong = own().find_map(|(question, answer)| {
        let code = judge_answer(context, tables, question, answer, peer, tunnel)?;
        Some((code, question, answer))
    });
    if let Some((code, question, answer)) = wrong {
        let mut evidence = vec![lookup(context, question, answer)];
        evidence.extend(
            tables.culprit(question, answer).map(|rule| Evidence::PolicyRule(rule.clone())),
        );
        evidence.extend(tables.route(question.to, answer).map(|route| Evidence::Route {
            to: question.to,
            destination: Some(route.key.destination),
            route: Some(route.kind),
            device: route.next_hop.device.map(|index| context.device_name(index)),
        }));
        return Some(before_encapsulation(code, peer, leads, evidence));
    }
    let (question, answer) = own().find(|(question, answer)| {
        question.pod.is_none() && is_bare_source(context, tables, question.to, answer, tunnel)
    })?;
    let mut evidence = vec![lookup(context, question, answer)];
    evidence.push(Evidence::NoAddress { device: tunnel.name.clone() });
    let mut finding =
        before_encapsulation(Code::HostSourceWithoutTunnelAddress, peer, leads, evidence);
    // What is sent so comes back another way; what others send to the address that
    // the device ought to have comes out of the tunnel and is not delivered.
    finding.direction = Some(Direction::Inbound);
    finding.hop = Some(Segment { from: Hop::Decapsulated, to: Hop::Delivered });
    Some(finding)
}

/// What is wrong with an answer; none for one that leads to the peer.
fn judge_answer(
    context: &Context<'_>,
    tables: &Tables<'_>,
    question: &RouteQuestion,
    answer: &RouteAnswer,
    peer: &Peer,
    tunnel: &Tunnel,
) -> Option<Code> {
    let found = match answer {
        RouteAnswer::Refused { errno } => return tables.refusal(question, *errno),
        RouteAnswer::Found(found) => found,
    };
    match found.kind {
        RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit => {
            return Some(Code::RouteBlackhole);
        }
        RouteKind::Unicast => {}
        RouteKind::Local | RouteKind::Throw | RouteKind::Other(_) => return None,
    }
    let leads_there = |found: &FoundRoute| {
        // host-gw and CrossSubnet route through the peer itself on purpose.
        found.gateway == Some(peer.id.0)
            || found.device == Some(tunnel.index)
            || peer.tunnels.iter().any(|leads| found.device == Some(leads.index))
    };
    if leads_there(found) || is_elsewhere(context, question, found, peer) {
        return None;
    }
    let main = tables.routes.lookup(table::MAIN, question.to);
    let main_is_right = main.is_some_and(|route| {
        let hops = std::iter::once(&route.next_hop).chain(&route.more_next_hops);
        hops.into_iter().any(|hop| {
            leads_there(&FoundRoute { device: hop.device, gateway: hop.gateway, ..*found })
        })
    });
    let usual = [table::MAIN, table::LOCAL, table::DEFAULT, 0];
    if main_is_right && !usual.contains(&found.table) {
        return Some(Code::PolicyRuleDiverts);
    }
    // Several ways out, of which the kernel chose another this time.
    if main_is_right {
        return None;
    }
    if is_other_tunnel(context, found, tunnel) {
        return Some(Code::LeftoverRoute);
    }
    let is_default = |route: &Route| route.key.destination.prefix_len() == 0;
    if tables.routes.lookup(found.table, question.to).is_some_and(is_default) {
        // Only the default route is left: the peer's own is missing.
        return Some(Code::RouteMissing);
    }
    Some(Code::RouteBypassesTunnel)
}

/// Whether a pod's address out of a peer's network is in use on another node or on
/// this one: Calico's IPAM lends addresses of a node's block to others.
fn is_elsewhere(
    context: &Context<'_>,
    question: &RouteQuestion,
    found: &FoundRoute,
    peer: &Peer,
) -> bool {
    let is_pod = !peer.tunnels.iter().any(|leads| leads.overlay == Some(question.to));
    let link = found.device.and_then(|index| context.now.links.seen()?.get(&index));
    let is_here = link.is_some_and(Link::leads_to_pods);
    let is_there = found.gateway.is_some_and(|gateway| context.is_peer(PeerId(gateway)));
    is_pod && (is_here || is_there)
}

/// Whether a way leads into the tunnel of another network plugin.
fn is_other_tunnel(context: &Context<'_>, found: &FoundRoute, tunnel: &Tunnel) -> bool {
    let link = found.device.and_then(|index| context.now.links.seen()?.get(&index));
    link.is_some_and(|link| {
        let owner = Owner::of_device(&link.name);
        let is_tunnel = matches!(link.kind, LinkKind::Vxlan(_) | LinkKind::Ipip(_));
        is_tunnel && owner != Owner::Unknown && owner != tunnel.owner
    })
}

/// Whether the host's own packets go into the tunnel with the node's address,
/// which the tunnel itself lacks one to replace. Others than flannel and Calico
/// may want it so, and so does whoever gives the route a source.
fn is_bare_source(
    context: &Context<'_>,
    tables: &Tables<'_>,
    to: IpAddr,
    answer: &RouteAnswer,
    tunnel: &Tunnel,
) -> bool {
    let RouteAnswer::Found(found) = answer else { return false };
    let (Some(source), Some(addresses)) = (found.source, context.now.addresses.seen()) else {
        return false;
    };
    let is_wanted = |route: &Route| route.source == Some(source);
    found.device == Some(tunnel.index)
        && !tunnel.collect_metadata
        && matches!(tunnel.owner, Owner::Flannel | Owner::Calico)
        && !addresses.iter().any(|a| a.index == tunnel.index && !a.is_link_local())
        && addresses.iter().any(|address| {
            address.net.addr() == source && context.now.underlays.contains(&address.index)
        })
        && !tables.routes.lookup(found.table, to).is_some_and(is_wanted)
}

impl Tables<'_> {
    /// What a refusal means. Of a forwarded packet EINVAL and EHOSTUNREACH may
    /// also mean that its source is not believed, or that nothing is forwarded
    /// (ip_route_input_slow, net/ipv4/route.c): then only a route that refuses is proof.
    fn refusal(&self, question: &RouteQuestion, errno: i32) -> Option<Code> {
        match errno {
            ENETUNREACH => Some(Code::RouteMissing),
            EACCES => Some(Code::RouteBlackhole),
            EHOSTUNREACH if question.pod.is_none() => Some(Code::RouteBlackhole),
            // It may be the question itself that a kernel does not like.
            EINVAL if question.pod.is_none() => {
                self.trap(question.to).map(|_| Code::RouteBlackhole)
            }
            EINVAL | EHOSTUNREACH => {
                let (_, route) = self.trap(question.to)?;
                route.map(|_| Code::RouteBlackhole)
            }
            _ => None,
        }
    }

    /// The first rule that may lead to a route that refuses, with that route.
    fn trap(&self, to: IpAddr) -> Option<(&PolicyRule, Option<&Route>)> {
        let named = self.matching(to).filter_map(|rule| {
            let route = self.routes.lookup(rule.table?, to)?;
            let refuses = matches!(
                route.kind,
                RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit
            );
            refuses.then_some((rule, Some(route)))
        });
        // A rule without a table refuses by itself.
        let bare = self.matching(to).filter(|rule| rule.table.is_none()).map(|rule| (rule, None));
        named.chain(bare).next()
    }

    fn matching(&self, to: IpAddr) -> impl Iterator<Item = &PolicyRule> {
        let covers = move |net: IpNet| net.contains(&to);
        self.rules.iter().filter(move |rule| rule.v6 == to.is_ipv6() && rule.to.is_none_or(covers))
    }

    /// The policy rule behind an answer, where it is not one that every kernel has.
    fn culprit(&self, question: &RouteQuestion, answer: &RouteAnswer) -> Option<&PolicyRule> {
        let rule = match answer {
            RouteAnswer::Refused { .. } => self.trap(question.to)?.0,
            RouteAnswer::Found(found) => {
                self.matching(question.to).find(|rule| rule.table == Some(found.table))?
            }
        };
        (!matches!(rule.table, Some(table::MAIN | table::LOCAL | table::DEFAULT))).then_some(rule)
    }

    /// The route behind an answer.
    fn route(&self, to: IpAddr, answer: &RouteAnswer) -> Option<&Route> {
        match answer {
            RouteAnswer::Refused { .. } => self.trap(to)?.1,
            RouteAnswer::Found(found) => self.routes.lookup(found.table, to),
        }
    }
}

/// What the kernel answered, as evidence.
fn lookup(context: &Context<'_>, question: &RouteQuestion, answer: &RouteAnswer) -> Evidence {
    let found = match answer {
        RouteAnswer::Found(found) => Some(found),
        RouteAnswer::Refused { .. } => None,
    };
    Evidence::Lookup {
        to: question.to,
        pod_device: question.pod.map(|pod| context.device_name(pod.device)),
        answer: *answer,
        device: found.and_then(|found| found.device).map(|index| context.device_name(index)),
    }
}
