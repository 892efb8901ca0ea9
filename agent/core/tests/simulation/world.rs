//! A node of a flannel-shaped cluster on a simulated clock: the real assembly,
//! planner and diagnoser, with the network replaced by a function that says
//! which packets are lost.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "test support: a broken world is a failed test"
)]

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use overlaywatch_core::assembly::{Assembly, Change, SourceId, SourceReport, Update};
use overlaywatch_core::diagnose::{Diagnoser, Diagnosis};
use overlaywatch_core::ladder::Window;
use overlaywatch_core::model::{
    Address, Encapsulation, FdbEntry, FdbKey, Host, IfIndex, Link, LinkCounters, LinkKind, Mac,
    Neighbour, NeighbourState, NextHop, PeerId, PeerListEntry, Route, RouteKey, RouteKind, Vxlan,
    table,
};
use overlaywatch_core::plan::{Planner, TICK_MS};
use overlaywatch_core::policy::Policy;
use overlaywatch_core::probing::{
    Passage, PeerStatus, ProbeEvent, ProbeRequest, Stream, TunnelAdvert,
};
use overlaywatch_core::snapshot::{NodeIdentity, Snapshot};
use overlaywatch_core::time::{MILLISECOND, Mono, Now, SECOND, Wall};

/// The tunnel of the simulated node.
pub(crate) const VXLAN: Encapsulation = Encapsulation::Vxlan(8472);
const NIC: IfIndex = IfIndex(2);
const TUNNEL: IfIndex = IfIndex(3);
const TICK_NS: u64 = TICK_MS as u64 * MILLISECOND;
/// Round-trip time of an undisturbed probe.
const RTT_NS: u64 = 300_000;

/// Which way a packet goes between the simulated node and a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A probe of the node, to the peer.
    Out,
    /// The peer's reply.
    Back,
    /// A probe of the peer's own, to the node.
    In,
}

/// One packet whose fate the network decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    /// The peer concerned.
    pub(crate) peer: PeerId,
    /// The stream that it belongs to.
    pub(crate) stream: Stream,
    /// Which way it goes.
    pub(crate) way: Way,
    /// When it is sent.
    pub(crate) at: Mono,
}

/// A reproducible pseudo-random sequence (SplitMix64).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// Uniform in 0..1.
    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Node 0 of a cluster, and what its peers saw of its probes.
pub(crate) struct World {
    assembly: Assembly,
    planner: Planner,
    diagnoser: Diagnoser,
    policy: Policy,
    now: Mono,
    sequences: HashMap<(PeerId, Stream), u32>,
    received: HashMap<(PeerId, Stream), Window>,
    /// The peers' own streams to this node: what they sent, what arrived.
    inbound: BTreeMap<(PeerId, Stream), (u32, Window)>,
    epochs: HashMap<PeerId, u64>,
    /// What peers say of their tunnels, where it is not what it should be.
    pub(crate) adverts: HashMap<PeerId, TunnelAdvert>,
    /// Probes sent so far.
    pub(crate) probes: u64,
}

/// The underlay address of a node.
pub(crate) fn underlay(node: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0001 + node).into()
}

fn overlay(node: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a2a_0000 + (node << 8)).into()
}

fn mac(node: u32) -> Mac {
    let [a, b, c, d] = node.to_be_bytes();
    Mac([2, 0x42, a, b, c, d])
}

fn link(index: IfIndex, name: &str, kind: LinkKind, mtu: u32, mac: Mac) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind,
        mac: Some(mac),
        mtu,
        admin_up: true,
        carrier: true,
        master: None,
        counters: LinkCounters::default(),
    }
}

fn route(destination: IpNet, device: IfIndex, gateway: Option<IpAddr>) -> Route {
    Route {
        key: RouteKey { table: table::MAIN, destination, metric: 0, tos: 0 },
        kind: RouteKind::Unicast,
        protocol: 3,
        source: None,
        next_hop: NextHop { gateway, device: Some(device), onlink: gateway.is_some() },
        more_next_hops: Vec::new(),
    }
}

impl World {
    /// A cluster of `nodes` nodes, listed in a peers file.
    pub(crate) fn new(nodes: u32) -> Self {
        let node = NodeIdentity { version: "test".to_owned(), ..NodeIdentity::default() };
        let policy = Policy::default();
        let mut world = Self {
            assembly: Assembly::new(node, None, policy.clone()),
            planner: Planner::default(),
            diagnoser: Diagnoser::default(),
            policy,
            now: Mono(1_000 * SECOND),
            sequences: HashMap::new(),
            received: HashMap::new(),
            inbound: BTreeMap::new(),
            epochs: HashMap::new(),
            adverts: HashMap::new(),
            probes: 0,
        };
        for update in facts(nodes) {
            world.assembly.fold(update, world.now);
        }
        for source in SourceId::ALL {
            let report =
                SourceReport { source, gap: None, detail: String::new(), duration_ns: 1_000 };
            world.assembly.fold(Update::Source(report), world.now);
        }
        world
    }

    /// The simulated time.
    pub(crate) fn now(&self) -> Mono {
        self.now
    }

    /// Tells the node something that a source saw.
    pub(crate) fn tell(&mut self, update: Update) {
        self.assembly.fold(update, self.now);
    }

    /// Another policy is in force.
    pub(crate) fn set(&mut self, policy: Policy) {
        self.policy = policy.clone();
        self.tell(Update::Policy(Box::new(policy)));
    }

    /// The peer's agent restarts.
    pub(crate) fn restart(&mut self, peer: PeerId) {
        *self.epochs.entry(peer).or_default() += 1;
        self.received.retain(|(known, _), _| *known != peer);
    }

    /// Half a second goes by in a network that loses what `lost` says.
    pub(crate) fn tick(&mut self, lost: &mut impl FnMut(Packet) -> bool) -> (Snapshot, Diagnosis) {
        let snapshot =
            self.assembly.freeze(Now { mono: self.now, wall: Wall(self.now.0 / MILLISECOND) });
        let diagnosis = self.diagnoser.evaluate(&snapshot, &self.policy);
        let due = self.planner.due(&snapshot, &diagnosis, self.policy.probes_per_second);
        let mut events = Vec::new();
        for peer in snapshot.peers.iter() {
            self.peer_probes(peer.id, lost, &mut events);
        }
        for request in due {
            self.probe(request, lost, &mut events);
        }
        self.now = self.now.plus(TICK_NS);
        events.push(ProbeEvent::Observed { at: self.now, lag_ns: 0, socket_drops: 0 });
        self.assembly.fold(Update::Probes(events), self.now);
        (snapshot, diagnosis)
    }

    /// Lets `seconds` go by and gives the last diagnosis.
    pub(crate) fn run(&mut self, seconds: u64, lost: &mut impl FnMut(Packet) -> bool) -> Diagnosis {
        let mut last = self.tick(lost);
        for _ in 1..seconds * SECOND / TICK_NS {
            last = self.tick(lost);
        }
        last.1
    }

    /// The peer sends its own small and underlay probe of this half second.
    fn peer_probes(
        &mut self,
        peer: PeerId,
        lost: &mut impl FnMut(Packet) -> bool,
        events: &mut Vec<ProbeEvent>,
    ) {
        let at = self.now;
        for stream in [Stream::Small(VXLAN), Stream::Underlay] {
            let (sent, window) = self.inbound.entry((peer, stream)).or_default();
            *sent += 1;
            if !lost(Packet { peer, stream, way: Way::In, at }) {
                window.record(*sent);
                if stream == Stream::Underlay {
                    let streams = self
                        .inbound
                        .range((peer, Stream::Underlay)..)
                        .take_while(|((known, _), _)| *known == peer)
                        .map(|(&(_, stream), &(sent_highest, received))| Passage {
                            stream,
                            sent_highest,
                            received,
                        })
                        .collect();
                    events.push(ProbeEvent::Asked { peer, at, streams });
                }
            }
        }
    }

    fn probe(
        &mut self,
        request: ProbeRequest,
        lost: &mut impl FnMut(Packet) -> bool,
        events: &mut Vec<ProbeEvent>,
    ) {
        let ProbeRequest { peer, stream, after_ms, .. } = request;
        self.probes += 1;
        let at = self.now.plus(u64::from(after_ms) * MILLISECOND);
        let sequence = self.sequences.entry((peer, stream)).or_insert(100);
        *sequence += 1;
        let seq = *sequence;
        events.push(ProbeEvent::Sent { peer, stream, seq, at });
        if lost(Packet { peer, stream, way: Way::Out, at }) {
            return;
        }
        self.received.entry((peer, stream)).or_default().record(seq);
        if lost(Packet { peer, stream, way: Way::Back, at }) {
            return;
        }
        let status = (stream == Stream::Underlay).then(|| Box::new(self.status_of(peer)));
        let at = at.plus(RTT_NS);
        events.push(ProbeEvent::Reply { peer, stream, seq, at, rtt_ns: RTT_NS, status });
    }

    fn status_of(&self, peer: PeerId) -> PeerStatus {
        let IpAddr::V4(address) = peer.0 else { panic!("an IPv4 underlay") };
        let node = address.to_bits() - 0x0a00_0001;
        let windows = [Stream::Underlay, Stream::Small(VXLAN), Stream::Full(VXLAN)]
            .into_iter()
            .filter_map(|stream| Some((stream, *self.received.get(&(peer, stream))?)))
            .collect();
        PeerStatus {
            node: None,
            epoch: self.epochs.get(&peer).copied().unwrap_or_default(),
            windows,
            tunnels: vec![self.adverts.get(&peer).copied().unwrap_or_else(|| advert(node))],
            climbs: Vec::new(),
            drops: Vec::new(),
        }
    }
}

/// What a node says of its tunnel.
pub(crate) fn advert(node: u32) -> TunnelAdvert {
    TunnelAdvert {
        encapsulation: VXLAN,
        vni: Some(1),
        up: true,
        address: Some(overlay(node)),
        mac: Some(mac(node)),
        mtu: 1450,
    }
}

/// The route of the pods of `node`.
pub(crate) fn pod_route(node: u32) -> Route {
    let pods = IpNet::new(overlay(node), 24).unwrap();
    route(pods, TUNNEL, Some(overlay(node)))
}

/// The neighbour entry of `node`'s VTEP.
pub(crate) fn neighbour(node: u32) -> Neighbour {
    Neighbour {
        index: TUNNEL,
        address: overlay(node),
        mac: Some(mac(node)),
        state: NeighbourState::Permanent,
    }
}

/// The forwarding entry of `node`'s VTEP, leading to node `to`.
pub(crate) fn fdb_entry(node: u32, to: u32) -> FdbEntry {
    FdbEntry {
        key: FdbKey { index: TUNNEL, mac: mac(node), destination: Some(underlay(to)) },
        permanent: true,
        vni: None,
        port: None,
    }
}

/// Node 0's NIC and tunnel device.
pub(crate) fn links() -> [Link; 2] {
    let vxlan = Vxlan {
        vni: 1,
        port: 8472,
        local: Some(underlay(0)),
        underlay: Some(NIC),
        ..Vxlan::default()
    };
    [
        link(NIC, "eth0", LinkKind::Plain, 1500, Mac([2, 0, 0, 0, 0, 2])),
        link(TUNNEL, "flannel.1", LinkKind::Vxlan(vxlan), 1450, mac(0)),
    ]
}

/// What the sources say of a healthy node 0.
fn facts(nodes: u32) -> Vec<Update> {
    let net = |address, length| IpNet::new(address, length).unwrap();
    let addresses = vec![
        Address { index: NIC, net: net(underlay(0), 16) },
        Address { index: TUNNEL, net: net(overlay(0), 32) },
    ];
    let mut routes = vec![route(net(underlay(0), 16).trunc(), NIC, None)];
    let (mut neighbours, mut fdb) = (Vec::new(), Vec::new());
    let mut listed = Vec::new();
    for node in 1..nodes {
        routes.push(pod_route(node));
        neighbours.push(neighbour(node));
        fdb.push(fdb_entry(node, node));
        listed.push(PeerListEntry { address: underlay(node), name: None, overlay: None });
    }
    let host = Host { ipv4_forwarding: Some(true), ..Host::default() };
    vec![
        Update::Links(Change::Replace(links().into())),
        Update::Addresses(Change::Replace(addresses)),
        Update::Routes(Change::Replace(routes)),
        Update::Rules(Change::Replace(Vec::new())),
        Update::Neighbours(Change::Replace(neighbours)),
        Update::Fdb(Change::Replace(fdb)),
        Update::Host(Box::new(host)),
        Update::PeersFile(Some(listed)),
    ]
}
