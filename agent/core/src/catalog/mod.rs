//! Every verdict this product can give: one closed list with one description each.
//!
//! The same table feeds metric labels, `/health`, `overlaywatch explain`, the
//! docs page and the alerts, so that they cannot disagree.

mod cni;
mod conntrack;
mod device;
mod ends;
mod groups;
mod host;
mod ipset;
mod loss;
mod netfilter;
mod peer;
mod policies;
mod routing;
mod sessions;
mod tables;
mod traffic;

use serde::{Deserialize, Serialize};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing; changes no status.
    Info,
    /// Will break something, or breaks a little: status `warn`.
    Warning,
    /// Traffic is lost now: status `fail`.
    Critical,
}

impl Severity {
    /// The name used in labels and JSON.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// A tunnel device is switched off.
    TunnelDown,
    /// A tunnel device that peers were reached through is gone.
    TunnelMissing,
    /// A VXLAN device sends from an address that this host does not have.
    VtepLocalAddressWrong,
    /// A tunnel's MTU does not fit the underlay's.
    TunnelMtuTooLarge,
    /// The peer's tunnel device is switched off.
    RemoteTunnelDown,
    /// The two ends use different VNIs.
    VniMismatch,
    /// The two ends use different UDP ports.
    VxlanPortMismatch,
    /// This node sends to a VTEP MAC that the peer does not have.
    StaleVtepMac,
    /// No forwarding entry for the peer's VTEP MAC.
    FdbMissing,
    /// The forwarding entry for the peer's VTEP MAC leads to another node.
    FdbMisdirected,
    /// No neighbour entry for the peer's overlay address.
    VtepNeighbourMissing,
    /// No route to the peer's overlay.
    RouteMissing,
    /// A blackhole, unreachable or prohibit route covers the peer's overlay.
    RouteBlackhole,
    /// The route to the peer's overlay does not lead into its tunnel.
    RouteBypassesTunnel,
    /// This host drops encapsulated packets after it made them.
    LocalOutputDrop,
    /// Probes through the tunnel are lost while the underlay passes them.
    EncapsulationLost,
    /// Some probes through the tunnel are lost while the underlay passes them.
    OverlayLoss,
    /// Some probes are lost already in the underlay.
    UnderlayLoss,
    /// Small packets pass through the tunnel, full-sized ones vanish.
    MtuBlackhole,
    /// Nothing of the peer answers.
    PeerUnreachable,
    /// Nothing of any peer answers.
    NodeIsolated,
    /// The NIC below the tunnels has no carrier or is switched off.
    UnderlayLinkDown,
    /// The peer's kernel answers, its agent does not.
    AgentSilent,
    /// The probes' own port is filtered; the network works.
    ProbePortFiltered,
    /// IP forwarding is off on a node that must forward for pods.
    ForwardingOff,
    /// The kernel no longer knows a peer that it knew, and nothing answers there.
    PeerDeparted,
    /// The peer's kernel answers the encapsulation with an ICMP error.
    EncapsulationRefused,
    /// Packets vanish between two hops, and no rule knows why.
    UnexplainedLoss,
    /// A policy rule sends what is meant for a peer's pods past its tunnel.
    PolicyRuleDiverts,
    /// A route of another network plugin leads a peer's pods into its own tunnel.
    LeftoverRoute,
    /// The host's own packets to pods get the node's address as their source.
    HostSourceWithoutTunnelAddress,
    /// Routes into a tunnel went all at once.
    RoutesVanished,
    /// A strict reverse path filter drops packets of the overlay.
    RpFilterStrict,
    /// Encapsulated packets come for which the kernel lacks the module.
    ModuleMissing,
    /// Devices and routes of a CNI plugin that runs no more, beside another's.
    CniLeftover,
    /// The file that comes first is of a CNI plugin that does not run.
    CniConfigPrecedence,
    /// The file that comes first cannot be read as a network configuration.
    CniConfigMalformed,
    /// Calico gives out addresses that are not in the cluster's pod network.
    PoolOutsidePodNetwork,
    /// The pod network and the nodes' own network have addresses in common.
    PodNetworkOverlap,
    /// A tunnel sends from the address of a bridge for containers.
    VtepAddressOfBridge,
    /// Two tunnel devices want the same UDP port.
    VxlanPortClaimedTwice,
    /// Somebody else's program on a device drops packets between nodes.
    ForeignProgramDrops,
    /// A device's queue drops packets between nodes.
    QdiscDrops,
    /// The table of tracked connections is full.
    ConntrackFull,
    /// The table of tracked connections is nearly full.
    ConntrackNearlyFull,
    /// Tunnel packets fill the table of tracked connections.
    ConntrackTunnelFlows,
    /// No BGP session with a peer that there was one with, or that is tried.
    BgpSessionDown,
    /// Felix says that it is not ready.
    FelixNotReady,
    /// Another service of this node says that it is not well.
    ServiceUnhealthy,
    /// Calico's ipset cannot read one of the sets.
    IpsetReaderTooOld,
    /// Another agent's ipset cannot read one of the sets that it reads.
    IpsetReaderBehind,
    /// A set takes no more members.
    IpsetFull,
    /// A set soon takes no more members.
    IpsetNearlyFull,
    /// A netfilter rule or policy of this node drops outer packets.
    EncapsulationFiltered,
    /// A policy drops what this node should forward.
    ForwardPolicyDrop,
    /// A controller's rules were removed all at once.
    FirewallFlushed,
    /// iptables cannot read a table.
    NftTableIncompatible,
    /// iptables prints a rule without its condition.
    NftRuleMisprinted,
    /// A base chain that iptables does not have, in one of its tables.
    ForeignBaseChain,
    /// Both backends of iptables have rules.
    IptablesBackendsMixed,
    /// One rule again and again.
    RulesFlood,
    /// An iptables that no agent is known to use cannot read a table.
    NftTableUnreadableBySome,
    /// A program of Cilium is on one hook twice.
    CiliumProgramTwice,
    /// Packets of peers come with a wrong checksum.
    ChecksumErrors,
    /// CPUs drop packets that they have no time to receive.
    SoftirqBacklog,
    /// The kernel's table of neighbours is full.
    NeighbourTableOverflow,
    /// Chains of a network policy controller that runs no more are in force.
    NetworkPolicyLeftover,
    /// Packets out of a tunnel are not tracked, and netfilter drops them.
    UntrackedInner,
    /// A rule drops the errors that tell pods that their packets are too big.
    IcmpTooBigFiltered,
    /// Two nodes have one tunnel address.
    TunnelAddressDuplicate,
}

/// The one description of a code.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The code.
    pub code: Code,
    /// Its name in JSON, labels, documents and on the command line.
    pub slug: &'static str,
    /// A title of a few words.
    pub title: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Milliseconds that it must have been found for, in two evaluations at
    /// least, before it is raised.
    pub raise_after_ms: u32,
    /// Seconds that it must have been gone before it is cleared.
    pub clear_after_seconds: u32,
    /// Codes that explain it, the likeliest cause first: while one of them is in
    /// force on the same or a wider subject, this one is its consequence.
    parents: &'static [&'static [Code]],
    /// What it means, for `explain` and the docs.
    pub meaning: &'static str,
    /// What to do; `{peer}`, `{device}` and `{address}` stand for the subject's.
    pub remedy: &'static str,
}

impl Code {
    /// Whether it is of packets that are lost now and then, on a path that works.
    #[must_use]
    pub const fn comes_and_goes(self) -> bool {
        matches!(self, Self::UnderlayLoss | Self::OverlayLoss)
    }

    /// Its description.
    #[must_use]
    pub fn entry(self) -> &'static Entry {
        CATALOG[self as usize]
    }

    /// Its name in JSON, labels, documents and on the command line.
    #[must_use]
    pub fn slug(self) -> &'static str {
        self.entry().slug
    }

    /// The code of this name.
    #[must_use]
    pub fn from_slug(slug: &str) -> Option<Self> {
        CATALOG.iter().find(|entry| entry.slug == slug).map(|entry| entry.code)
    }
}

impl Entry {
    /// Codes that explain this one, the likeliest cause first.
    pub fn parents(&self) -> impl Iterator<Item = Code> {
        self.parents.iter().copied().flatten().copied()
    }
}

/// The entries, family by family.
const FAMILIES: &[&[Entry]] = &[
    device::ENTRIES,
    ends::ENTRIES,
    tables::ENTRIES,
    loss::ENTRIES,
    peer::ENTRIES,
    host::ENTRIES,
    routing::ENTRIES,
    cni::ENTRIES,
    traffic::ENTRIES,
    conntrack::ENTRIES,
    sessions::ENTRIES,
    ipset::ENTRIES,
    netfilter::ENTRIES,
    policies::ENTRIES,
];

/// How many codes there are.
const COUNT: usize = {
    let (mut count, mut family) = (0, 0);
    while family < FAMILIES.len() {
        count += FAMILIES[family].len();
        family += 1;
    }
    count
};

/// Every code's description, in order of [`Code`]. Two descriptions of one code do
/// not compile.
pub static CATALOG: [&Entry; COUNT] = {
    let mut entries = [&FAMILIES[0][0]; COUNT];
    let mut is_described = [false; COUNT];
    let mut family = 0;
    while family < FAMILIES.len() {
        let mut position = 0;
        while position < FAMILIES[family].len() {
            let entry = &FAMILIES[family][position];
            assert!(!is_described[entry.code as usize], "a code is described twice");
            is_described[entry.code as usize] = true;
            entries[entry.code as usize] = entry;
            position += 1;
        }
        family += 1;
    }
    entries
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_in_order_and_named_once() {
        for (position, entry) in CATALOG.iter().enumerate() {
            assert_eq!(entry.code as usize, position, "{}", entry.slug);
            assert_eq!(Code::from_slug(entry.slug), Some(entry.code));
            let json = serde_json::to_string(&entry.code).unwrap();
            assert_eq!(json, format!("\"{}\"", entry.slug));
        }
    }

    #[test]
    fn no_remedy_runs_a_containers_file_with_the_hosts_rights() {
        for entry in CATALOG {
            for way in ["nsenter", "chroot", "/proc/"] {
                assert!(!entry.remedy.contains(way), "{} says {way}", entry.slug);
            }
        }
    }

    #[test]
    fn parents_form_no_circle() {
        fn reaches(from: Code, to: Code, depth: usize) -> bool {
            depth > 0 && from.entry().parents().any(|p| p == to || reaches(p, to, depth - 1))
        }
        for entry in CATALOG {
            assert!(!reaches(entry.code, entry.code, 8), "{} explains itself", entry.slug);
        }
    }
}
