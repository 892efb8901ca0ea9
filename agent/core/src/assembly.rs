//! Updates in, snapshots out: the one place where network state is kept.

mod answers;
mod fold;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use self::answers::Answers;
use self::fold::{fold_list, fold_map, fold_routes, replace};
pub use self::update::{Change, SourceId, SourceReport, Update};
use crate::fact::{Fact, Gap};
use crate::kernel::KernelCounts;
use crate::model::{
    Address, Cni, Conntrack, FdbEntry, FdbKey, Host, IfIndex, IpSets, Link, LinkKind, Machine,
    Neighbour, Netfilter, NodeName, Peer, PeerId, PeerListEntry, PolicyRule, Route, RouteKey,
    RouteTable, ServiceHealth, Sockets, Tools, TrafficControl, Tunnel, table, tunnels,
};
use crate::outcomes::Outcomes;
use crate::peers::{Directory, Evidence, forget_ns, own_entry};
use crate::policy::Policy;
use crate::probing::ProberCounters;
use crate::snapshot::{NodeIdentity, ProberState, Snapshot, SourceState};
use crate::time::{Mono, Now, SECOND};
use crate::vanished::Vanished;

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
    pub const fn losing(&self) -> &BTreeSet<PeerId> {
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
        // The same value while they are the same: much is worked out from it.
        if *self.peers != peers {
            self.peers = Arc::new(peers);
        }
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
        if !found.is_empty() && *self.underlays != found {
            self.underlays = Arc::new(found);
        }
    }
}
