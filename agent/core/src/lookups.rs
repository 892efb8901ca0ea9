//! What the kernel is to be asked about its own routing: a function of what was
//! observed. A few peers at each tick, those that lose first, so that a thousand
//! peers cost no more than ten.

use std::net::IpAddr;

use crate::model::{
    IfIndex, LookupPlan, Peer, PeerAnswers, PeerId, PodSide, RouteQuestion, Tunnel,
};
use crate::snapshot::Snapshot;
use crate::time::{Mono, SECOND};

/// Peers that lose, and are asked about, per tick.
const LOSING_PER_TICK: usize = 2;
/// Peers that are asked about per tick.
const PEERS_PER_TICK: usize = 3;
/// An answer is asked for again at this age; of peers that lose, sooner.
const AGE_NS: u64 = 5 * SECOND;
const LOSING_AGE_NS: u64 = SECOND;

/// The questions of this tick; `losing` gives the peers that something was lost to.
#[must_use]
pub fn plan(snapshot: &Snapshot, losing: impl IntoIterator<Item = PeerId>) -> LookupPlan {
    let mut losing: Vec<PeerId> = losing.into_iter().collect();
    losing.sort_unstable();
    let mut answers = snapshot.lookups.seen().into_iter().flat_map(|all| &all.0).peekable();
    let (mut lost, mut others) = (Vec::new(), Vec::new());
    for peer in snapshot.peers.iter() {
        // Both are in order of address, so one goes along with the other.
        while answers.next_if(|(id, _)| **id < peer.id).is_some() {}
        let known = answers.next_if(|(id, _)| **id == peer.id);
        let at = known.map(|(_, answers): (_, &std::sync::Arc<PeerAnswers>)| answers.at);
        let is_losing = losing.binary_search(&peer.id).is_ok();
        let age = if is_losing { LOSING_AGE_NS } else { AGE_NS };
        if at.is_none_or(|at| snapshot.now.mono.since(at) >= age) {
            if is_losing { &mut lost } else { &mut others }.push((at, peer));
        }
    }
    // What was asked longest ago comes first, and what never was before that.
    let order = |(at, peer): &(Option<Mono>, &Peer)| (*at, peer.id);
    foremost(&mut lost, LOSING_PER_TICK, order);
    foremost(&mut others, PEERS_PER_TICK, order);
    let peers: Vec<&Peer> =
        lost.into_iter().chain(others).map(|(_, peer)| peer).take(PEERS_PER_TICK).collect();
    if peers.is_empty() {
        return LookupPlan::default();
    }
    let pods = pod_sides(snapshot);
    let tunnels = snapshot.tunnels.seen().map_or(&[][..], |tunnels| tunnels.as_slice());
    let questions = peers.into_iter().filter_map(|peer| {
        let questions = questions(peer, tunnels, &pods);
        (!questions.is_empty()).then_some((peer.id, questions))
    });
    LookupPlan(questions.collect())
}

/// Keeps the first `count` in order, without sorting all the others.
fn foremost<T, K: Ord>(all: &mut Vec<T>, count: usize, key: impl Fn(&T) -> K) {
    if all.len() > count {
        all.select_nth_unstable_by_key(count, &key);
        all.truncate(count);
    }
    all.sort_unstable_by_key(key);
}

/// The peer's tunnel addresses and one of its pods' addresses, from the host, and
/// the latter as a pod here would reach it.
fn questions(peer: &Peer, tunnels: &[Tunnel], pods: &[PodSide]) -> Vec<RouteQuestion> {
    let is_up = |index: IfIndex| tunnels.iter().any(|tunnel| tunnel.index == index && tunnel.up);
    let leads = peer.tunnels.iter().filter(|leads| is_up(leads.index));
    let mut questions: Vec<RouteQuestion> =
        leads.filter_map(|leads| Some(RouteQuestion { to: leads.overlay?, pod: None })).collect();
    if questions.is_empty() && !peer.tunnels.iter().any(|leads| is_up(leads.index)) {
        return questions;
    }
    if let Some(to) = pod_address(peer) {
        questions.push(RouteQuestion { to, pod: None });
        let side = pods.iter().find(|side| side.source.is_ipv4() == to.is_ipv4());
        questions.extend(side.map(|side| RouteQuestion { to, pod: Some(*side) }));
    }
    questions.dedup();
    questions
}

/// An address in the first network of a peer's pods, as a pod may have it: the
/// first one or two of a network are its own and the bridge's.
#[must_use]
pub fn pod_address(peer: &Peer) -> Option<IpAddr> {
    let network = peer.pod_networks.first()?;
    network.hosts().nth(1).or_else(|| network.hosts().next())
}

/// One pod of this node by family, told from the neighbours on the devices that
/// lead to pods.
fn pod_sides(snapshot: &Snapshot) -> Vec<PodSide> {
    let (Some(links), Some(neighbours)) = (snapshot.links.seen(), snapshot.neighbours.seen())
    else {
        return Vec::new();
    };
    let mut sides: Vec<PodSide> = Vec::new();
    let devices = links.values().filter(|link| link.admin_up && link.carrier);
    for link in devices.filter(|link| link.leads_to_pods()) {
        let first = (link.index, IpAddr::from([0; 4]));
        let on_device =
            neighbours.range(first..).take_while(|((index, _), _)| *index == link.index);
        for ((device, source), neighbour) in on_device {
            let is_link_local = match source {
                IpAddr::V4(v4) => v4.is_link_local(),
                IpAddr::V6(v6) => v6.is_unicast_link_local(),
            };
            let is_known = sides.iter().any(|side| side.source.is_ipv4() == source.is_ipv4());
            if neighbour.state.is_usable() && !is_link_local && !is_known {
                sides.push(PodSide { device: *device, source: *source });
            }
        }
        if sides.len() == 2 {
            break;
        }
    }
    sides
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fact::Fact;
    use crate::model::{Encapsulation, Origin, Owner, PeerTunnel};

    const TUNNEL: IfIndex = IfIndex(3);

    fn peer(node: u8) -> Peer {
        let overlay = Some([10, 42, node, 0].into());
        Peer {
            id: PeerId([10, 0, 0, node].into()),
            name: None,
            origin: Origin::Kernel,
            tunnels: vec![PeerTunnel {
                index: TUNNEL,
                device: "flannel.1".to_owned(),
                encapsulation: Encapsulation::Vxlan(8472),
                overlay,
                mac: None,
            }],
            pod_networks: vec![format!("10.42.{node}.0/24").parse().unwrap()],
            other_addresses: Vec::new(),
            departed_since: None,
        }
    }

    fn snapshot(peers: u8) -> Snapshot {
        let tunnel =
            Tunnel { owner: Owner::Flannel, ..Tunnel::plain(TUNNEL, "flannel.1", 8472, 1) };
        let mut snapshot = Snapshot {
            peers: Arc::new((1..=peers).map(peer).collect()),
            tunnels: Fact::Seen { value: Arc::new(vec![tunnel]), at: Mono(0) },
            ..Snapshot::default()
        };
        snapshot.now.mono = Mono(100 * SECOND);
        snapshot
    }

    fn asked(plan: &LookupPlan) -> Vec<PeerId> {
        plan.0.iter().map(|(peer, _)| *peer).collect()
    }

    /// As if all of the plan had been answered now.
    fn answer(snapshot: &mut Snapshot, plan: &LookupPlan) {
        let mut all = snapshot.lookups.seen().map(|all| (**all).clone()).unwrap_or_default();
        for (peer, _) in &plan.0 {
            let answers = PeerAnswers { at: snapshot.now.mono, answers: Vec::new() };
            all.0.insert(*peer, Arc::new(answers));
        }
        snapshot.lookups = Fact::Seen { value: Arc::new(all), at: snapshot.now.mono };
    }

    #[test]
    fn everybody_has_a_turn_and_few_at_a_time() {
        let mut snapshot = snapshot(200);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200_usize.div_ceil(PEERS_PER_TICK) {
            let plan = plan(&snapshot, []);
            assert!(plan.0.len() <= PEERS_PER_TICK);
            seen.extend(asked(&plan));
            answer(&mut snapshot, &plan);
            snapshot.now.mono = snapshot.now.mono.plus(SECOND / 2);
        }
        assert_eq!(seen.len(), 200);
    }

    #[test]
    fn who_loses_comes_first_and_again_after_a_second() {
        let mut snapshot = snapshot(50);
        let lossy = PeerId([10, 0, 0, 40].into());
        let first = plan(&snapshot, [lossy]);
        assert_eq!(asked(&first)[0], lossy);
        answer(&mut snapshot, &first);
        assert!(!asked(&plan(&snapshot, [lossy])).contains(&lossy));
        snapshot.now.mono = snapshot.now.mono.plus(SECOND);
        assert_eq!(asked(&plan(&snapshot, [lossy]))[0], lossy);
    }

    #[test]
    fn a_small_cluster_is_left_in_peace_between() {
        let mut snapshot = snapshot(2);
        let first = plan(&snapshot, []);
        assert_eq!(first.0.len(), 2);
        let to: Vec<IpAddr> = first.0[0].1.iter().map(|question| question.to).collect();
        assert_eq!(to, [IpAddr::from([10, 42, 1, 0]), [10, 42, 1, 2].into()]);
        answer(&mut snapshot, &first);
        snapshot.now.mono = snapshot.now.mono.plus(AGE_NS - 1);
        assert_eq!(plan(&snapshot, []), LookupPlan::default());
        snapshot.now.mono = snapshot.now.mono.plus(1);
        assert_eq!(plan(&snapshot, []), first);
    }
}
