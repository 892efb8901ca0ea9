//! Which probes are due: a pure function of the member list and the time, so
//! that no node needs to agree on anything with another.
//!
//! All nodes order the members by the same hash. In each slot of a second
//! every node probes the member that stands a certain stride further, the same
//! stride for all: so each node is probed exactly once per slot.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::diagnose::Diagnosis;
use crate::model::{Encapsulation, Peer, PeerId, Tunnel};
use crate::probing::{ProbeRequest, Stream};
use crate::snapshot::Snapshot;
use crate::time::{Mono, SECOND};

/// Orders are given this often, milliseconds.
pub const TICK_MS: u16 = 500;
/// Out-neighbours of the base graph that are probed every second in a large mesh.
const BASE_DEGREE: usize = 16;
/// The base graph gets a full-sized probe every this many seconds.
const FULL_EVERY_SECONDS: u64 = 4;
/// Least probes per second that walk the ring of all members.
const LEAST_RING: usize = 4;
/// Confirmation bursts begun per tick: four a second per source.
const BURSTS_PER_TICK: usize = 2;
/// A pair gets at most one confirmation burst in this time.
const BURST_PAUSE_NS: u64 = SECOND;
/// And one that has a verdict as many times rarer as there are times so many members:
/// they may all have it of one node, for days.
const MEMBERS_PER_PAUSE: u64 = 8;
/// Small and underlay probes of a confirmation burst.
const BURST_PROBES: u16 = 10;
/// Milliseconds between the probes of a burst.
const BURST_GAP_MS: u16 = 45;
/// Size of an inner IP packet of the small stream, bytes.
const SMALL_BYTES: u16 = 128;
/// Size of an underlay probe's IP packet, bytes: its reply carries the peer's
/// half of the ladder and must not be longer.
const UNDERLAY_BYTES: u16 = 560;
/// Size of an ICMP echo's IP packet, bytes.
const ECHO_BYTES: u16 = 64;

/// The planner's memory: when which pair was last given a burst, and the order
/// of the members.
#[derive(Debug, Default)]
pub struct Planner {
    bursts: BTreeMap<PeerId, Mono>,
    ring: Ring,
}

impl Planner {
    /// The probes of the tick that begins now, in order of their time.
    pub fn due(
        &mut self,
        snapshot: &Snapshot,
        diagnosis: &Diagnosis,
        probes_per_second: u16,
    ) -> Vec<ProbeRequest> {
        let tunnels = snapshot.tunnels.seen().map_or(&[][..], |tunnels| tunnels.as_slice());
        let half = snapshot.now.wall.0 / u64::from(TICK_MS);
        let mut requests = Vec::new();
        self.ring.follow(&snapshot.peers, snapshot.node.underlay);
        for turn in steady(&self.ring, half, probes_per_second) {
            push_turn(&mut requests, turn, snapshot, tunnels);
        }
        self.confirm(&mut requests, snapshot, diagnosis, tunnels);
        requests.sort_by_key(|request| request.after_ms);
        requests
    }

    fn confirm(
        &mut self,
        requests: &mut Vec<ProbeRequest>,
        snapshot: &Snapshot,
        diagnosis: &Diagnosis,
        tunnels: &[Tunnel],
    ) {
        let now = snapshot.now.mono;
        let longer = (snapshot.peers.len() as u64).div_ceil(MEMBERS_PER_PAUSE).max(1);
        let longest = BURST_PAUSE_NS.saturating_mul(longer);
        self.bursts.retain(|_, at| now.since(*at) < longest);
        for (peer, pair) in snapshot.peers_and_pairs() {
            let Some(pair) = pair else { continue };
            let silent = pair.streams.get(&Stream::Underlay).is_some_and(|u| u.run.lost() > 0);
            if silent {
                // Tells a silent agent from a silent network, at any time.
                for after in [0, TICK_MS / 2] {
                    requests.push(request(peer, Stream::Echo, peer.id.0, None, ECHO_BYTES, after));
                }
            }
        }
        let mut suspects: Vec<&Peer> = snapshot
            .peers_and_pairs()
            .filter(|(_, pair)| {
                pair.is_some_and(|pair| pair.streams.values().any(|v| v.suspicious))
            })
            .filter_map(|(peer, _)| Some((peer, pause(diagnosis, peer.id, longest)?)))
            .filter(|(peer, pause)| {
                self.bursts.get(&peer.id).is_none_or(|at| now.since(*at) >= *pause)
            })
            .map(|(peer, _)| peer)
            .collect();
        // Another pair first at each tick, so that many suspects share the bursts.
        let tick = now.0 / (u64::from(TICK_MS) * 1_000_000);
        suspects.sort_by_key(|peer| mix(hash(peer.id.0) ^ tick));
        for peer in suspects.into_iter().take(BURSTS_PER_TICK) {
            self.bursts.insert(peer.id, now);
            burst(requests, peer, snapshot, tunnels);
        }
    }
}

/// How long a pair that lost something waits for its next burst; none where a finding
/// explains its losses. That they come and go is no explanation: one probe a second
/// would not tell whether they still do.
fn pause(diagnosis: &Diagnosis, peer: PeerId, longest: u64) -> Option<u64> {
    let mut pause = BURST_PAUSE_NS;
    for active in &diagnosis.findings {
        if active.finding.subject.peer() != Some(peer) {
            continue;
        }
        if !active.finding.code.comes_and_goes() {
            return None;
        }
        pause = longest;
    }
    Some(pause)
}

fn burst(requests: &mut Vec<ProbeRequest>, peer: &Peer, snapshot: &Snapshot, tunnels: &[Tunnel]) {
    for round in 0..BURST_PROBES {
        let after = round * BURST_GAP_MS;
        for (tunnel, stream, overlay) in through(peer, tunnels, Stream::Small) {
            requests.push(request(peer, stream, overlay, tunnel.address, SMALL_BYTES, after));
        }
        // Full-sized ones are dear: four suffice.
        if round % 3 == 0 {
            for (tunnel, stream, overlay) in through(peer, tunnels, Stream::Full) {
                let bytes = full_bytes(tunnel);
                requests.push(request(peer, stream, overlay, tunnel.address, bytes, after + 5));
            }
        }
        requests.push(beside(peer, snapshot, tunnels, after + 10));
    }
}

/// One peer's turn in a tick.
#[derive(Clone, Copy, Debug)]
struct Turn<'a> {
    peer: &'a Peer,
    after_ms: u16,
    underlay: bool,
    full: bool,
}

fn push_turn(
    requests: &mut Vec<ProbeRequest>,
    turn: Turn<'_>,
    snapshot: &Snapshot,
    tunnels: &[Tunnel],
) {
    let peer = turn.peer;
    for (tunnel, stream, overlay) in through(peer, tunnels, Stream::Small) {
        requests.push(request(peer, stream, overlay, tunnel.address, SMALL_BYTES, turn.after_ms));
    }
    if turn.full {
        for (tunnel, stream, overlay) in through(peer, tunnels, Stream::Full) {
            let bytes = full_bytes(tunnel);
            requests.push(request(peer, stream, overlay, tunnel.address, bytes, turn.after_ms + 2));
        }
    }
    if turn.underlay {
        // Last, so that its reply tells of the probes before it.
        requests.push(beside(peer, snapshot, tunnels, turn.after_ms + 4));
    }
}

/// A probe without a tunnel. Peers answer the address that they know this node by. A
/// NIC may have several of IPv6 (from router advertisements, temporary ones), of which
/// the kernel prefers what it likes (RFC 6724), so that one is chosen here.
fn beside(peer: &Peer, snapshot: &Snapshot, tunnels: &[Tunnel], after_ms: u16) -> ProbeRequest {
    let source = || {
        let leads = |tunnel: &&Tunnel| peer.tunnels.iter().any(|it| it.index == tunnel.index);
        let local = tunnels.iter().filter(leads).find_map(|tunnel| tunnel.local);
        let own = local.into_iter().chain(snapshot.node.underlay);
        let addresses = snapshot.addresses.seen()?;
        // With one that is not there the kernel would not even send.
        let is_here = |own: &IpAddr| addresses.iter().any(|address| address.net.addr() == *own);
        own.filter(IpAddr::is_ipv6).find(is_here)
    };
    let source = if peer.id.0.is_ipv6() { source() } else { None };
    request(peer, Stream::Underlay, peer.id.0, source, UNDERLAY_BYTES, after_ms)
}

/// The tunnels through which a peer can be probed, with stream and target.
fn through<'a>(
    peer: &'a Peer,
    tunnels: &'a [Tunnel],
    kind: impl Fn(Encapsulation) -> Stream + 'a,
) -> impl Iterator<Item = (&'a Tunnel, Stream, IpAddr)> + 'a {
    peer.tunnels.iter().filter_map(move |leads| {
        let tunnel = tunnels.iter().find(|tunnel| tunnel.index == leads.index && tunnel.up)?;
        Some((tunnel, kind(leads.encapsulation), leads.overlay?))
    })
}

fn full_bytes(tunnel: &Tunnel) -> u16 {
    u16::try_from(tunnel.mtu).unwrap_or(u16::MAX)
}

const fn request(
    peer: &Peer,
    stream: Stream,
    target: IpAddr,
    source: Option<IpAddr>,
    ip_bytes: u16,
    after_ms: u16,
) -> ProbeRequest {
    ProbeRequest { peer: peer.id, stream, target, source, ip_bytes, after_ms }
}

/// The steady plan of one half second.
fn steady(ring: &Ring, half: u64, budget: u16) -> Vec<Turn<'_>> {
    // Departed ones too: whether something still answers there makes the verdict.
    let others = ring.peers.len();
    if others == 0 {
        return Vec::new();
    }
    let encapsulations = ring.encapsulations;
    let budget = usize::from(budget);
    let second = half / 2;
    // Each stride is a slot of the second; a slot belongs to one half of it.
    let mut turns = Vec::new();
    let mut take = |strides: &[usize], underlay: bool, full: &dyn Fn(usize) -> bool| {
        for (slot, &stride) in strides.iter().enumerate() {
            let at_ms = slot * 1_000 / strides.len();
            if (at_ms >= usize::from(TICK_MS)) != (half % 2 == 1) {
                continue;
            }
            let after_ms = u16::try_from(at_ms % usize::from(TICK_MS)).unwrap_or(0);
            if let Some(peer) = ring.at(stride) {
                turns.push(Turn { peer, after_ms, underlay, full: full(slot) });
            }
        }
    };
    if others * (1 + 2 * encapsulations) <= budget {
        let all: Vec<usize> = (1..=others).collect();
        take(&all, true, &|_| true);
        return turns;
    }
    let base = base_strides(others);
    let full_now = |slot: usize| slot as u64 % FULL_EVERY_SECONDS == second % FULL_EVERY_SECONDS;
    take(&base, true, &full_now);
    let spent = base.len() * (1 + encapsulations) + base.len() * encapsulations / 4;
    let walk = (budget.saturating_sub(spent) / encapsulations.max(1)).max(LEAST_RING);
    let start = usize::try_from(second).unwrap_or(0).wrapping_mul(walk);
    let walked: Vec<usize> = (0..walk).map(|step| 1 + start.wrapping_add(step) % others).collect();
    // Without a tunnel the ring is walked in the underlay.
    take(&walked, encapsulations == 0, &|_| false);
    turns
}

/// The strides of the base graph for `others` other members: pseudo-random,
/// distinct, the same on every node.
fn base_strides(others: usize) -> Vec<usize> {
    let mut strides = Vec::new();
    let mut draw = 0_u64;
    while strides.len() < BASE_DEGREE.min(others) {
        draw += 1;
        let reduced = mix(draw) % (others as u64);
        let stride = 1 + usize::try_from(reduced).unwrap_or(0);
        if !strides.contains(&stride) {
            strides.push(stride);
        }
    }
    strides
}

/// The members in the order that all nodes share, seen from this node.
#[derive(Debug, Default)]
struct Ring {
    peers: Arc<Vec<Peer>>,
    own: Option<IpAddr>,
    /// Positions in `peers`, starting after this node.
    order: Vec<usize>,
    /// The most tunnels that lead to one peer.
    encapsulations: usize,
}

impl Ring {
    fn new(peers: &Arc<Vec<Peer>>, own: Option<IpAddr>) -> Self {
        let mut order: Vec<usize> = (0..peers.len()).collect();
        let address = |&position: &usize| peers.get(position).map(|peer| peer.id.0);
        order.sort_by_cached_key(|position| address(position).map(place));
        // Without an own address the order still holds, the share of slots does not.
        let first = own.map_or(0, |own| {
            let own = Some(place(own));
            order.partition_point(|position| address(position).map(place) < own)
        });
        if first < order.len() {
            order.rotate_left(first);
        }
        let encapsulations = peers.iter().map(|peer| peer.tunnels.len()).max().unwrap_or(0);
        Self { peers: Arc::clone(peers), own, order, encapsulations }
    }

    /// Puts the members in order again if they are others.
    fn follow(&mut self, peers: &Arc<Vec<Peer>>, own: Option<IpAddr>) {
        if !Arc::ptr_eq(&self.peers, peers) || self.own != own {
            *self = Self::new(peers, own);
        }
    }

    /// The member that stands `stride` places after this node.
    fn at(&self, stride: usize) -> Option<&Peer> {
        self.peers.get(*self.order.get(stride.checked_sub(1)?)?)
    }
}

fn place(address: IpAddr) -> (u64, IpAddr) {
    (hash(address), address)
}

fn hash(address: IpAddr) -> u64 {
    let bits = match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let [high, low] =
        [bits >> 64, bits & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or(0));
    mix(mix(high) ^ low)
}

/// SplitMix64's finalizer: spreads any input evenly.
const fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::fact::Fact;
    use crate::model::{Address, IfIndex, Origin, PeerTunnel};

    fn address(node: usize) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0001 + u32::try_from(node).unwrap()).into()
    }

    fn ring_of(own: usize, nodes: usize) -> Ring {
        let peers = (0..nodes)
            .filter(|&node| node != own)
            .map(|node| Peer {
                id: PeerId(address(node)),
                name: None,
                origin: Origin::File,
                tunnels: vec![PeerTunnel {
                    index: IfIndex(9),
                    device: "flannel.1".to_owned(),
                    encapsulation: Encapsulation::Vxlan(8472),
                    overlay: Some(address(node)),
                    mac: None,
                }],
                pod_networks: Vec::new(),
                other_addresses: Vec::new(),
                departed_since: None,
            })
            .collect();
        Ring::new(&Arc::new(peers), Some(address(own)))
    }

    /// Probes that a turn costs with one encapsulation.
    fn cost(turn: &Turn<'_>) -> usize {
        1 + usize::from(turn.underlay) + usize::from(turn.full)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn nobody_is_probed_twice_in_a_slot(nodes in 2_usize..70, half: u32) {
            let mut incoming = BTreeMap::<(u16, bool, PeerId), usize>::new();
            for own in 0..nodes {
                let ring = ring_of(own, nodes);
                for turn in steady(&ring, u64::from(half), 64) {
                    *incoming.entry((turn.after_ms, turn.underlay, turn.peer.id)).or_default() += 1;
                }
            }
            prop_assert!(incoming.values().all(|&count| count == 1), "{:?}", incoming);
        }

        #[test]
        fn every_pair_is_covered_in_time(nodes in 2_usize..400, start: u32) {
            let ring = ring_of(0, nodes);
            let mut reached = BTreeSet::new();
            let rounds = nodes.div_ceil(LEAST_RING) as u64 + 1;
            for half in 0..2 * rounds {
                for turn in steady(&ring, u64::from(start) + half, 64) {
                    reached.insert(turn.peer.id);
                }
            }
            prop_assert_eq!(reached.len(), nodes - 1);
        }

        #[test]
        fn the_budget_is_kept(nodes in 2_usize..3_000, second: u32) {
            let ring = ring_of(0, nodes);
            let spent: usize = [0, 1]
                .iter()
                .flat_map(|half| steady(&ring, u64::from(second) * 2 + half, 64))
                .map(|turn| cost(&turn))
                .sum();
            prop_assert!(spent <= 64, "{} probes in a second", spent);
            prop_assert!(nodes < 30 || spent >= 56, "only {} probes in a second", spent);
        }

        #[test]
        fn the_same_time_gives_the_same_plan(nodes in 2_usize..200, half: u32) {
            let ring = ring_of(0, nodes);
            let plan = || -> Vec<_> {
                steady(&ring, u64::from(half), 64)
                    .iter()
                    .map(|turn| (turn.peer.id, turn.after_ms, turn.underlay, turn.full))
                    .collect()
            };
            prop_assert_eq!(plan(), plan());
        }
    }

    #[test]
    fn an_ipv6_peer_is_asked_from_the_address_that_it_knows() {
        let tunnel = |local: &str| Tunnel {
            local: Some(local.parse().unwrap()),
            ..Tunnel::plain(IfIndex(9), "flannel-v6.1", 8472, 1)
        };
        let source = |to: &str, local: &str, own: &[&str]| {
            let mut peer = ring_of(0, 2).peers[0].clone();
            peer.id = PeerId(to.parse().unwrap());
            let of = |net: &&str| Address { index: IfIndex(2), net: net.parse().unwrap() };
            let addresses = Arc::new(own.iter().map(of).collect());
            let addresses = Fact::Seen { value: addresses, at: Mono(1) };
            let snapshot = Snapshot { addresses, ..Snapshot::default() };
            beside(&peer, &snapshot, &[tunnel(local)], 0).source
        };
        let own = ["2001:db8::5:6:7:8/64", "2001:db8::11/64", "10.0.0.11/24"];
        let known = Some("2001:db8::11".parse().unwrap());
        assert_eq!(source("2001:db8::12", "2001:db8::11", &own), known);
        // With an address that is gone nothing would be sent.
        assert_eq!(source("2001:db8::12", "2001:db8::11", &own[..1]), None);
        assert_eq!(source("10.0.0.12", "10.0.0.11", &own), None);
    }

    #[test]
    fn a_small_mesh_is_probed_whole_every_second() {
        let ring = ring_of(0, 8);
        let mut seen = BTreeMap::<PeerId, usize>::new();
        for half in [100, 101] {
            for turn in steady(&ring, half, 64) {
                assert!(turn.underlay && turn.full);
                *seen.entry(turn.peer.id).or_default() += 1;
            }
        }
        assert_eq!(seen.len(), 7);
        assert!(seen.values().all(|&count| count == 1));
    }
}
