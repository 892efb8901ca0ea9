//! Updates in, snapshots out: the one place where network state is kept.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::fact::{Fact, Gap};
use crate::kernel::KernelCounts;
use crate::model::{
    Address, Cni, Conntrack, FdbEntry, FdbKey, Host, IfIndex, IpSets, Link, LinkKind, Lookups,
    Machine, Neighbour, Netfilter, NodeName, Peer, PeerAnswers, PeerId, PeerListEntry, PolicyRule,
    Route, RouteKey, RouteTable, ServiceHealth, Sockets, Tools, TrafficControl, Tunnel, table,
    tunnels,
};
use crate::outcomes::Outcomes;
use crate::peers::{Directory, Evidence, forget_ns, own_entry};
use crate::policy::Policy;
use crate::probing::{ProbeEvent, ProberCounters};
use crate::snapshot::{NodeIdentity, ProberState, Snapshot, SourceState};
use crate::time::{Mono, Now, SECOND};
use crate::vanished::Vanished;

/// A source of facts, as labels and gaps name it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum SourceId {
    /// Links (RTM_GETLINK).
    Links,
    /// Addresses (RTM_GETADDR).
    Addresses,
    /// Routes (RTM_GETROUTE).
    Routes,
    /// Policy rules (RTM_GETRULE).
    Rules,
    /// Neighbours (RTM_GETNEIGH).
    Neighbours,
    /// Forwarding databases (RTM_GETNEIGH, AF_BRIDGE).
    Fdb,
    /// /proc.
    Procfs,
    /// The prober and responder.
    Probe,
    /// The peers file.
    Peers,
    /// The configuration, when it is read again.
    Configuration,
    /// The eBPF programs.
    Kernel,
    /// The kernel's own routing answers (RTM_GETROUTE for one address).
    Lookups,
    /// The machine: its files and firmware.
    Machine,
    /// CNI files and agents.
    Cni,
    /// Traffic control.
    Traffic,
    /// Connection tracking (CTNETLINK).
    Conntrack,
    /// TCP sockets (sock_diag).
    Sockets,
    /// What services of this node answer on their health ports.
    Services,
    /// IP sets.
    Ipset,
    /// The host's and containers' tools.
    Tools,
    /// Netfilter: nftables (NFNL_SUBSYS_NFTABLES), and which xtables there are.
    Nftables,
}

impl SourceId {
    /// All sources.
    pub const ALL: [Self; 21] = [
        Self::Links,
        Self::Addresses,
        Self::Routes,
        Self::Rules,
        Self::Neighbours,
        Self::Fdb,
        Self::Procfs,
        Self::Probe,
        Self::Peers,
        Self::Configuration,
        Self::Kernel,
        Self::Lookups,
        Self::Machine,
        Self::Cni,
        Self::Traffic,
        Self::Conntrack,
        Self::Sockets,
        Self::Services,
        Self::Ipset,
        Self::Tools,
        Self::Nftables,
    ];

    /// The name used in labels and JSON.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Links => "links",
            Self::Addresses => "addresses",
            Self::Routes => "routes",
            Self::Rules => "rules",
            Self::Neighbours => "neighbours",
            Self::Fdb => "fdb",
            Self::Procfs => "procfs",
            Self::Probe => "probe",
            Self::Peers => "peers",
            Self::Configuration => "configuration",
            Self::Kernel => "kernel",
            Self::Lookups => "lookups",
            Self::Machine => "machine",
            Self::Cni => "cni",
            Self::Traffic => "traffic",
            Self::Conntrack => "conntrack",
            Self::Sockets => "sockets",
            Self::Services => "services",
            Self::Ipset => "ipset",
            Self::Tools => "tools",
            Self::Nftables => "nftables",
        }
    }
}

/// How a collection changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<K, V> {
    /// A complete dump: this is all there is.
    Replace(Vec<V>),
    /// One item is new or different.
    Upsert(V),
    /// One item is gone.
    Remove(K),
}

/// What a source tells the assembly.
#[derive(Clone, Debug)]
pub enum Update {
    /// Network devices.
    Links(Change<IfIndex, Link>),
    /// Addresses.
    Addresses(Change<Address, Address>),
    /// Routes of all tables, IPv4 and IPv6.
    Routes(Change<RouteKey, Route>),
    /// Policy rules.
    Rules(Change<PolicyRule, PolicyRule>),
    /// Neighbours.
    Neighbours(Change<(IfIndex, IpAddr), Neighbour>),
    /// Forwarding entries of VXLAN devices.
    Fdb(Change<FdbKey, FdbEntry>),
    /// A whole reading of /proc.
    Host(Box<Host>),
    /// A list of peers from the peers file; none when no file is configured.
    PeersFile(Option<Vec<PeerListEntry>>),
    /// Expectations and limits, at start and whenever the configuration is read again.
    Policy(Box<Policy>),
    /// What the prober saw since the last update, in order.
    Probes(Vec<ProbeEvent>),
    /// The prober's counters.
    ProberCounters(Box<ProberCounters>),
    /// What the kernel counted at this node's hops.
    Kernel(Box<KernelCounts>),
    /// What the kernel answered about the ways to some peers.
    Lookups(Vec<(PeerId, PeerAnswers)>),
    /// A whole reading of the machine.
    Machine(Box<Machine>),
    /// What files and processes say of CNI plugins.
    Cni(Box<Cni>),
    /// Queues of devices.
    Traffic(Box<TrafficControl>),
    /// The table of tracked connections; none where nothing is tracked.
    Conntrack(Option<Box<Conntrack>>),
    /// What TCP sockets say of routing sessions.
    Sockets(Box<Sockets>),
    /// What services of this node answer: those that listen.
    Services(Vec<ServiceHealth>),
    /// All IP sets.
    Ipset(Box<IpSets>),
    /// All tools.
    Tools(Box<Tools>),
    /// Netfilter, summed up.
    Netfilter(Box<Netfilter>),
    /// How a source fared in its last run. A gap other than none makes its facts missing.
    Source(SourceReport),
}

/// How one run of a source went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceReport {
    /// Which source.
    pub source: SourceId,
    /// None when it succeeded. Facts of a source with a gap are missing until
    /// its next `Replace`.
    pub gap: Option<Gap>,
    /// What went wrong and the remedy, for people; empty when nothing did.
    pub detail: String,
    /// How long the run took, nanoseconds.
    pub duration_ns: u64,
}

/// The state of everything that sources tell, folded from their updates.
#[derive(Debug)]
pub struct Assembly {
    node: NodeIdentity,
    /// The host's name, for when no list names this node.
    host_name: Option<NodeName>,
    policy: Policy,
    file: Option<Vec<PeerListEntry>>,
    links: Fact<Arc<BTreeMap<IfIndex, Link>>>,
    addresses: Fact<Arc<Vec<Address>>>,
    routes: Fact<Arc<RouteTable>>,
    rules: Fact<Arc<Vec<PolicyRule>>>,
    neighbours: Fact<Arc<BTreeMap<(IfIndex, IpAddr), Neighbour>>>,
    fdb: Fact<Arc<BTreeMap<FdbKey, FdbEntry>>>,
    host: Fact<Arc<Host>>,
    kernel: Fact<Arc<KernelCounts>>,
    lookups: Answers,
    machine: Fact<Arc<Machine>>,
    vanished: Vanished,
    cni: Fact<Arc<Cni>>,
    traffic: Fact<Arc<TrafficControl>>,
    conntrack: Fact<Arc<Conntrack>>,
    sockets: Fact<Arc<Sockets>>,
    services: Fact<Arc<Vec<ServiceHealth>>>,
    ipsets: Fact<Arc<IpSets>>,
    tools: Fact<Arc<Tools>>,
    netfilter: Fact<Arc<Netfilter>>,
    sources: BTreeMap<SourceId, SourceState>,
    outcomes: Outcomes,
    counters: ProberCounters,
    directory: Directory,
    /// The tunnels told last: the same value while they are the same.
    tunnels: Arc<Vec<Tunnel>>,
    /// Who the peers are, and what that was told from.
    peers: Arc<Vec<Peer>>,
    peers_from: Option<PeerInputs>,
    /// Counts changes of the two peer lists.
    lists: u64,
    underlays: Arc<Vec<IfIndex>>,
}

/// What peers are told from. Collections are compared by identity, since a
/// change always makes a new one.
#[derive(Debug)]
struct PeerInputs {
    at: Mono,
    tunnels: Arc<Vec<Tunnel>>,
    addresses: Arc<Vec<Address>>,
    routes: Arc<RouteTable>,
    neighbours: Arc<BTreeMap<(IfIndex, IpAddr), Neighbour>>,
    fdb: Arc<BTreeMap<FdbKey, FdbEntry>>,
    /// Versions of the lists and of what peers say of themselves.
    versions: (u64, u64),
}

/// Peers are told again after this long even if nothing changed: departed ones
/// are forgotten by time.
const PEERS_AGE_NS: u64 = 10 * SECOND;

impl PeerInputs {
    fn is_same(&self, other: &Self) -> bool {
        self.versions == other.versions
            && other.at.since(self.at) < PEERS_AGE_NS
            && Arc::ptr_eq(&self.tunnels, &other.tunnels)
            && Arc::ptr_eq(&self.addresses, &other.addresses)
            && Arc::ptr_eq(&self.routes, &other.routes)
            && Arc::ptr_eq(&self.neighbours, &other.neighbours)
            && Arc::ptr_eq(&self.fdb, &other.fdb)
    }
}

impl Assembly {
    /// Nothing known yet. `node.name` is set where it was configured;
    /// `host_name` serves where no list names this node.
    #[must_use]
    pub fn new(node: NodeIdentity, host_name: Option<NodeName>, policy: Policy) -> Self {
        Self {
            node,
            host_name,
            policy,
            file: None,
            links: Fact::default(),
            addresses: Fact::default(),
            routes: Fact::default(),
            rules: Fact::default(),
            neighbours: Fact::default(),
            fdb: Fact::default(),
            host: Fact::default(),
            kernel: Fact::default(),
            lookups: Answers::default(),
            machine: Fact::default(),
            vanished: Vanished::default(),
            cni: Fact::default(),
            traffic: Fact::default(),
            conntrack: Fact::default(),
            sockets: Fact::default(),
            services: Fact::default(),
            ipsets: Fact::default(),
            tools: Fact::default(),
            netfilter: Fact::default(),
            sources: BTreeMap::new(),
            outcomes: Outcomes::default(),
            counters: ProberCounters::default(),
            directory: Directory::default(),
            tunnels: Arc::default(),
            peers: Arc::default(),
            peers_from: None,
            lists: 0,
            underlays: Arc::default(),
        }
    }

    /// Expectations and limits in force.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Peers to which something was lost in the last seconds.
    pub fn losing(&self) -> impl Iterator<Item = PeerId> {
        self.outcomes.losing()
    }

    /// Takes what a source tells.
    pub fn fold(&mut self, update: Update, at: Mono) {
        match update {
            Update::Links(change) => fold_map(&mut self.links, change, at, |link| link.index),
            Update::Addresses(change) => fold_list(&mut self.addresses, change, at),
            Update::Routes(change) => self.fold_routes(change, at),
            Update::Rules(change) => fold_list(&mut self.rules, change, at),
            Update::Neighbours(change) => {
                fold_map(&mut self.neighbours, change, at, |n| (n.index, n.address));
            }
            Update::Fdb(change) => fold_map(&mut self.fdb, change, at, |entry| entry.key),
            Update::Kernel(counts) => {
                self.kernel = Fact::Seen { value: Arc::new(*counts), at };
            }
            Update::Lookups(answers) => self.lookups.take(answers, at),
            Update::Machine(machine) => {
                self.machine = Fact::Seen { value: Arc::new(*machine), at };
            }
            Update::Conntrack(None) => self.conntrack = Fact::Absent { at },
            Update::Conntrack(Some(table)) => replace(&mut self.conntrack, *table, at),
            Update::Sockets(sockets) => replace(&mut self.sockets, *sockets, at),
            Update::Services(services) => replace(&mut self.services, services, at),
            Update::Netfilter(all) => {
                self.netfilter = Fact::Seen { value: Arc::new(*all), at };
            }
            Update::Host(host) => self.host = Fact::Seen { value: Arc::new(*host), at },
            Update::Cni(cni) => replace(&mut self.cni, *cni, at),
            Update::Traffic(traffic) => replace(&mut self.traffic, *traffic, at),
            Update::Ipset(sets) => replace(&mut self.ipsets, *sets, at),
            Update::Tools(tools) => replace(&mut self.tools, *tools, at),
            Update::PeersFile(list) => {
                self.file = list;
                self.lists += 1;
            }
            Update::Policy(policy) => {
                self.policy = *policy;
                self.lists += 1;
            }
            Update::Probes(events) => events.into_iter().for_each(|e| self.outcomes.take(e)),
            Update::ProberCounters(counters) => self.counters = *counters,
            Update::Source(report) => self.note(report, at),
        }
    }

    fn fold_routes(&mut self, change: Change<RouteKey, Route>, at: Mono) {
        let before = match (&change, self.routes.seen()) {
            (Change::Remove(key), Some(table)) => {
                self.vanished.removed(*key, table, &self.tunnels, at);
                None
            }
            (Change::Replace(_), Some(table)) => Some(Arc::clone(table)),
            _ => None,
        };
        fold_routes(&mut self.routes, change, at);
        if let (Some(before), Some(now)) = (before, self.routes.seen())
            && !Arc::ptr_eq(&before, now)
        {
            self.vanished.replaced(&before, now, &self.tunnels, at);
        }
    }

    fn note(&mut self, report: SourceReport, at: Mono) {
        let state = self.sources.entry(report.source).or_default();
        state.runs += 1;
        state.duration_ns = report.duration_ns;
        state.gap = report.gap;
        state.detail = report.detail;
        let Some(gap) = report.gap else {
            state.last_success = Some(at);
            return;
        };
        state.failures += 1;
        match report.source {
            SourceId::Links => self.links = Fact::Missing(gap),
            SourceId::Addresses => self.addresses = Fact::Missing(gap),
            SourceId::Routes => self.routes = Fact::Missing(gap),
            SourceId::Rules => self.rules = Fact::Missing(gap),
            SourceId::Neighbours => self.neighbours = Fact::Missing(gap),
            SourceId::Fdb => self.fdb = Fact::Missing(gap),
            SourceId::Procfs => self.host = Fact::Missing(gap),
            SourceId::Kernel => self.kernel = Fact::Missing(gap),
            SourceId::Lookups => self.lookups.answers = Fact::Missing(gap),
            SourceId::Machine => self.machine = Fact::Missing(gap),
            SourceId::Cni => self.cni = Fact::Missing(gap),
            SourceId::Traffic => self.traffic = Fact::Missing(gap),
            SourceId::Conntrack => self.conntrack = Fact::Missing(gap),
            SourceId::Sockets => self.sockets = Fact::Missing(gap),
            SourceId::Services => self.services = Fact::Missing(gap),
            SourceId::Ipset => self.ipsets = Fact::Missing(gap),
            SourceId::Tools => self.tools = Fact::Missing(gap),
            SourceId::Nftables => self.netfilter = Fact::Missing(gap),
            SourceId::Probe | SourceId::Peers | SourceId::Configuration => {}
        }
    }

    /// What is known now, as one immutable value.
    pub fn freeze(&mut self, now: Now) -> Snapshot {
        self.outcomes.settle();
        let tunnels = match (&self.links, &self.addresses) {
            (Fact::Seen { value: links, at }, Fact::Seen { value: addresses, .. }) => {
                let told = tunnels(links, addresses);
                if *self.tunnels != told {
                    self.tunnels = Arc::new(told);
                }
                Fact::Seen { value: Arc::clone(&self.tunnels), at: *at }
            }
            (Fact::Missing(gap), _) | (_, Fact::Missing(gap)) => Fact::Missing(*gap),
            _ => Fact::Missing(Gap::NotYet),
        };
        let known_tunnels = tunnels.seen().cloned().unwrap_or_default();
        if self.resolve_peers(now.mono, &known_tunnels) {
            let peers = Arc::clone(&self.peers);
            self.outcomes.retain(|id| peers.binary_search_by_key(&id, |peer| peer.id).is_ok());
            self.find_underlays(&known_tunnels);
        }
        let lookups = self.lookups.tell(now.mono, &self.routes, &self.rules, &self.addresses);
        let vanished = self.vanished.tell(self.routes.seen().map(AsRef::as_ref), now.mono);
        Snapshot {
            now,
            node: self.identity(&known_tunnels),
            links: self.links.clone(),
            addresses: self.addresses.clone(),
            routes: self.routes.clone(),
            rules: self.rules.clone(),
            neighbours: self.neighbours.clone(),
            fdb: self.fdb.clone(),
            host: self.host.clone(),
            kernel: self.kernel.clone(),
            lookups,
            vanished,
            machine: self.machine.clone(),
            cni: self.cni.clone(),
            traffic: self.traffic.clone(),
            conntrack: self.conntrack.clone(),
            sockets: self.sockets.clone(),
            services: self.services.clone(),
            ipsets: self.ipsets.clone(),
            tools: self.tools.clone(),
            netfilter: self.netfilter.clone(),
            tunnels,
            underlays: Arc::clone(&self.underlays),
            peers: Arc::clone(&self.peers),
            pairs: self.outcomes.views(now.mono),
            sources: self.sources.clone(),
            prober: ProberState {
                counters: self.counters.clone(),
                discounted_until: self.outcomes.discounted_until(),
                worst_lag_ns: self.outcomes.worst_lag_ns(),
            },
        }
    }

    /// Why nobody knows of tunnels, if so.
    fn tunnel_gap(&self) -> Option<Gap> {
        self.links.gap().or(self.addresses.gap())
    }

    fn identity(&self, tunnels: &[Tunnel]) -> NodeIdentity {
        let addresses = self.addresses.seen().map_or(&[][..], |addresses| addresses.as_slice());
        let entry = own_entry(&self.policy.peers, self.file.as_deref(), addresses);
        let name = self.node.name.clone().or_else(|| {
            entry.and_then(|entry| entry.name.clone()).or_else(|| self.host_name.clone())
        });
        let is_here = |local: &IpAddr| addresses.iter().any(|a| a.net.addr() == *local);
        let underlay = entry
            .map(|entry| entry.address)
            .or_else(|| tunnels.iter().filter_map(|tunnel| tunnel.local).find(is_here));
        NodeIdentity { name, underlay, ..self.node.clone() }
    }

    /// Tells who the peers are, if anything that tells it changed; whether it did.
    fn resolve_peers(&mut self, now: Mono, tunnels: &Arc<Vec<Tunnel>>) -> bool {
        // A dump that failed is no empty table: what was known stays in force.
        let is_blind = self.tunnel_gap().is_some()
            || self.routes.gap().is_some()
            || self.neighbours.gap().is_some()
            || self.fdb.gap().is_some();
        if is_blind && self.peers_from.is_some() {
            return false;
        }
        let inputs = PeerInputs {
            at: now,
            tunnels: Arc::clone(tunnels),
            addresses: self.addresses.seen().cloned().unwrap_or_default(),
            routes: self.routes.seen().cloned().unwrap_or_default(),
            neighbours: self.neighbours.seen().cloned().unwrap_or_default(),
            fdb: self.fdb.seen().cloned().unwrap_or_default(),
            versions: (self.lists, self.outcomes.statuses()),
        };
        if self.peers_from.as_ref().is_some_and(|before| before.is_same(&inputs)) {
            return false;
        }
        let evidence = Evidence {
            tunnels,
            addresses: &inputs.addresses,
            routes: &inputs.routes,
            neighbours: &inputs.neighbours,
            fdb: &inputs.fdb,
        };
        let peers = self.directory.resolve(
            now,
            forget_ns(self.policy.forget_departed_seconds),
            &self.policy.peers,
            self.file.as_deref(),
            &evidence,
            |peer| self.outcomes.status(peer).map(|(_, status)| status),
        );
        self.peers = Arc::new(peers);
        self.peers_from = Some(inputs);
        true
    }

    /// Devices that lead to peers. A device that goes down loses its routes,
    /// so what was found last stays in force until something else is found.
    fn find_underlays(&mut self, tunnels: &[Tunnel]) {
        let (Some(routes), Some(links)) = (self.routes.seen(), self.links.seen()) else { return };
        let is_tunnel = |index: IfIndex| {
            links
                .get(&index)
                .is_some_and(|l| matches!(l.kind, LinkKind::Vxlan(_) | LinkKind::Ipip(_)))
        };
        let mut found: Vec<IfIndex> = self
            .peers
            .iter()
            .filter_map(|peer| routes.lookup(table::MAIN, peer.id.0)?.next_hop.device)
            .chain(tunnels.iter().filter_map(|tunnel| tunnel.underlay))
            .filter(|&index| !is_tunnel(index))
            .collect();
        found.sort_unstable();
        found.dedup();
        if !found.is_empty() {
            self.underlays = Arc::new(found);
        }
    }
}

/// The kernel's routing answers, and the tables that they were given from.
#[derive(Debug, Default)]
struct Answers {
    answers: Fact<Arc<Lookups>>,
    routes: Option<Arc<RouteTable>>,
    rules: Option<Arc<Vec<PolicyRule>>>,
    addresses: Option<Arc<Vec<Address>>>,
    /// When one of those was seen to change last.
    changed: Mono,
}

/// An answer holds no longer than this, even while no table changes: what else
/// it depends on tells nobody of its changes.
const ANSWER_AGE_NS: u64 = 120 * SECOND;

impl Answers {
    fn take(&mut self, answers: Vec<(PeerId, PeerAnswers)>, at: Mono) {
        let mut all = self.answers.seen().cloned().unwrap_or_default();
        let known = &mut Arc::make_mut(&mut all).0;
        known.extend(answers.into_iter().map(|(peer, answers)| (peer, Arc::new(answers))));
        self.answers = Fact::Seen { value: all, at };
    }

    /// The answers that hold: none that is older than the tables are.
    fn tell(
        &mut self,
        now: Mono,
        routes: &Fact<Arc<RouteTable>>,
        rules: &Fact<Arc<Vec<PolicyRule>>>,
        addresses: &Fact<Arc<Vec<Address>>>,
    ) -> Fact<Arc<Lookups>> {
        let are_the_same = [
            follow(&mut self.routes, routes),
            follow(&mut self.rules, rules),
            follow(&mut self.addresses, addresses),
        ];
        if are_the_same.contains(&false) {
            self.changed = now;
        }
        if let Fact::Seen { value, .. } = &mut self.answers {
            let holds = |at: Mono| at > self.changed && now.since(at) < ANSWER_AGE_NS;
            if !value.0.values().all(|answers| holds(answers.at)) {
                Arc::make_mut(value).0.retain(|_, answers| holds(answers.at));
            }
        }
        self.answers.clone()
    }
}

/// Takes the present collection in the place of an earlier one; whether it is the
/// very same.
fn follow<T>(known: &mut Option<Arc<T>>, present: &Fact<Arc<T>>) -> bool {
    let is_same = match (&*known, present.seen()) {
        (Some(known), Some(present)) => Arc::ptr_eq(known, present),
        (None, None) => true,
        _ => false,
    };
    if !is_same {
        *known = present.seen().cloned();
    }
    is_same
}

/// A dump that says what was known already leaves the collection as it is, so
/// that whoever compares by identity sees no change.
fn replace<T: PartialEq>(fact: &mut Fact<Arc<T>>, all: T, at: Mono) {
    match fact {
        Fact::Seen { value, at: seen } if **value == all => *seen = at,
        _ => *fact = Fact::Seen { value: Arc::new(all), at },
    }
}

fn fold_map<K: Ord + Clone, V: Clone + PartialEq>(
    fact: &mut Fact<Arc<BTreeMap<K, V>>>,
    change: Change<K, V>,
    at: Mono,
    key: impl Fn(&V) -> K,
) {
    match change {
        Change::Replace(all) => {
            let map = all.into_iter().map(|value| (key(&value), value)).collect();
            replace(fact, map, at);
        }
        // A change without a complete picture before it proves nothing.
        Change::Upsert(value) => {
            if let Fact::Seen { value: map, at: seen } = fact {
                let key = key(&value);
                if map.get(&key) != Some(&value) {
                    Arc::make_mut(map).insert(key, value);
                }
                *seen = at;
            }
        }
        Change::Remove(key) => {
            if let Fact::Seen { value: map, at: seen } = fact {
                if map.contains_key(&key) {
                    Arc::make_mut(map).remove(&key);
                }
                *seen = at;
            }
        }
    }
}

fn fold_list<T: Ord + Clone>(fact: &mut Fact<Arc<Vec<T>>>, change: Change<T, T>, at: Mono) {
    match change {
        Change::Replace(mut all) => {
            all.sort_unstable();
            replace(fact, all, at);
        }
        Change::Upsert(item) => {
            if let Fact::Seen { value: list, at: seen } = fact {
                if let Err(position) = list.binary_search(&item) {
                    Arc::make_mut(list).insert(position, item);
                }
                *seen = at;
            }
        }
        Change::Remove(item) => {
            if let Fact::Seen { value: list, at: seen } = fact {
                if let Ok(position) = list.binary_search(&item) {
                    Arc::make_mut(list).remove(position);
                }
                *seen = at;
            }
        }
    }
}

fn fold_routes(fact: &mut Fact<Arc<RouteTable>>, change: Change<RouteKey, Route>, at: Mono) {
    match change {
        Change::Replace(all) => {
            let map = all.into_iter().map(|route| (route.key, route)).collect();
            replace(fact, RouteTable(map), at);
        }
        Change::Upsert(route) => {
            if let Fact::Seen { value, at: seen } = fact {
                if value.0.get(&route.key) != Some(&route) {
                    Arc::make_mut(value).0.insert(route.key, route);
                }
                *seen = at;
            }
        }
        Change::Remove(key) => {
            if let Fact::Seen { value, at: seen } = fact {
                if value.0.contains_key(&key) {
                    Arc::make_mut(value).0.remove(&key);
                }
                *seen = at;
            }
        }
    }
}
