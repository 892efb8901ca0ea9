//! What sources tell the assembly.

use std::net::IpAddr;

use crate::fact::Gap;
use crate::kernel::KernelCounts;
use crate::model::{
    Address, Cni, Conntrack, FdbEntry, FdbKey, Host, IfIndex, IpSets, Link, Machine, Neighbour,
    Netfilter, PeerAnswers, PeerId, PeerListEntry, PolicyRule, Route, RouteKey, ServiceHealth,
    Sockets, Tools, TrafficControl,
};
use crate::policy::Policy;
use crate::probing::{ProbeEvent, ProberCounters};

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
