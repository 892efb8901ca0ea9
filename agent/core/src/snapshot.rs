//! The immutable observation that one diagnosis is made from.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::assembly::SourceId;
use crate::fact::{Fact, Gap};
use crate::kernel::KernelCounts;
use crate::model::{
    Address, Cni, Conntrack, FdbEntry, FdbKey, Host, IfIndex, IpSets, Link, Lookups, Machine,
    Neighbour, Netfilter, NodeName, Peer, PeerId, PolicyRule, RouteTable, ServiceHealth, Sockets,
    Tools, TrafficControl, Tunnel, VanishedRoute,
};
use crate::pairs::PairView;
use crate::probing::ProberCounters;
use crate::time::{Mono, Now};

/// What was known at one moment. Cheap to clone: collections are shared.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// When it was frozen.
    pub now: Now,
    /// This node.
    pub node: NodeIdentity,
    /// Network devices.
    pub links: Fact<Arc<BTreeMap<IfIndex, Link>>>,
    /// Addresses, in order.
    pub addresses: Fact<Arc<Vec<Address>>>,
    /// Routes of all tables.
    pub routes: Fact<Arc<RouteTable>>,
    /// Policy rules, in order of priority.
    pub rules: Fact<Arc<Vec<PolicyRule>>>,
    /// Neighbours.
    #[serde(with = "crate::record::as_pairs")]
    pub neighbours: Fact<Arc<BTreeMap<(IfIndex, IpAddr), Neighbour>>>,
    /// Forwarding entries of VXLAN devices.
    #[serde(with = "crate::record::as_pairs")]
    pub fdb: Fact<Arc<BTreeMap<FdbKey, FdbEntry>>>,
    /// /proc.
    pub host: Fact<Arc<Host>>,
    /// What the eBPF programs counted.
    #[serde(default)]
    pub kernel: Fact<Arc<KernelCounts>>,
    /// What the kernel itself says of the ways to peers, as far as it still holds.
    #[serde(default)]
    pub lookups: Fact<Arc<Lookups>>,
    /// Routes into tunnels that went and are not back.
    #[serde(default)]
    pub vanished: Arc<Vec<VanishedRoute>>,
    /// The machine.
    #[serde(default)]
    pub machine: Fact<Arc<Machine>>,
    /// CNI files and agents.
    #[serde(default)]
    pub cni: Fact<Arc<Cni>>,
    /// Queues of devices.
    #[serde(default)]
    pub traffic: Fact<Arc<TrafficControl>>,
    /// The table of tracked connections.
    #[serde(default)]
    pub conntrack: Fact<Arc<Conntrack>>,
    /// Routing sessions, as TCP sockets tell of them.
    #[serde(default)]
    pub sockets: Fact<Arc<Sockets>>,
    /// Services of this node that listen on their health ports.
    #[serde(default)]
    pub services: Fact<Arc<Vec<ServiceHealth>>>,
    /// IP sets.
    #[serde(default)]
    pub ipsets: Fact<Arc<IpSets>>,
    /// Tools of the host and of containers on its network.
    #[serde(default)]
    pub tools: Fact<Arc<Tools>>,
    /// Netfilter.
    #[serde(default)]
    pub netfilter: Fact<Arc<Netfilter>>,
    /// Tunnel devices, from links and addresses.
    pub tunnels: Fact<Arc<Vec<Tunnel>>>,
    /// Devices below the tunnels: those that lead to peers, remembered while
    /// no route tells.
    pub underlays: Arc<Vec<IfIndex>>,
    /// The other nodes, in order of address.
    pub peers: Arc<Vec<Peer>>,
    /// What probes say of each peer.
    pub pairs: BTreeMap<PeerId, Arc<PairView>>,
    /// How each source fares.
    pub sources: BTreeMap<SourceId, SourceState>,
    /// The prober's own health and counters.
    pub prober: ProberState,
}

impl Snapshot {
    /// Each peer with what probes say of it: both are in order of address, so
    /// one goes along with the other.
    pub fn peers_and_pairs(&self) -> impl Iterator<Item = (&Peer, Option<&PairView>)> {
        let mut pairs = self.pairs.iter().peekable();
        self.peers.iter().map(move |peer| {
            while pairs.next_if(|(id, _)| **id < peer.id).is_some() {}
            (peer, pairs.next_if(|(id, _)| **id == peer.id).map(|(_, pair)| pair.as_ref()))
        })
    }
}

/// Who this node is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// Its name.
    pub name: Option<NodeName>,
    /// Its underlay address: the one that a list names, else its tunnels' source.
    pub underlay: Option<IpAddr>,
    /// Changes with each start of the agent.
    pub epoch: u64,
    /// The agent's version.
    pub version: String,
}

/// How a source fares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceState {
    /// Its current gap; none when its facts are good.
    pub gap: Option<Gap>,
    /// What went wrong and the remedy.
    pub detail: String,
    /// How long its last run took, nanoseconds.
    pub duration_ns: u64,
    /// When it last succeeded.
    pub last_success: Option<Mono>,
    /// Runs since start.
    pub runs: u64,
    /// Failed runs since start.
    pub failures: u64,
}

/// The prober's own state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProberState {
    /// Since start.
    pub counters: ProberCounters,
    /// Until when outcomes are discounted because the prober was starved or
    /// lost datagrams of its own.
    pub discounted_until: Option<Mono>,
    /// The longest delay of a wake-up in the last minute, nanoseconds.
    pub worst_lag_ns: u64,
}
