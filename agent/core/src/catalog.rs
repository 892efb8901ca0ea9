//! Every verdict this product can give: one closed list with one description each.
//!
//! The same table feeds metric labels, `/health`, `overlaywatch explain`, the
//! docs page and the alerts, so that they cannot disagree.

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
    /// Its description.
    #[must_use]
    pub fn entry(self) -> &'static Entry {
        &CATALOG[self as usize]
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

/// This node's devices: without them nothing leaves.
const DEVICES: &[Code] = &[Code::UnderlayLinkDown, Code::TunnelDown, Code::TunnelMissing];
/// The two ends of a tunnel do not fit each other.
const ENDS: &[Code] = &[
    Code::VtepLocalAddressWrong,
    Code::RemoteTunnelDown,
    Code::VniMismatch,
    Code::VxlanPortMismatch,
    Code::StaleVtepMac,
];
/// The kernel's tables do not lead to the peer.
const TABLES: &[Code] = &[
    Code::FdbMissing,
    Code::FdbMisdirected,
    Code::VtepNeighbourMissing,
    Code::RouteMissing,
    Code::RouteBlackhole,
    Code::RouteBypassesTunnel,
];
/// The peer's kernel itself says that it does not take the encapsulation.
const REFUSED: &[Code] = &[Code::EncapsulationRefused];
/// More is lost already on a layer below.
const LOSS: &[Code] =
    &[Code::LocalOutputDrop, Code::EncapsulationLost, Code::UnexplainedLoss, Code::UnderlayLoss];
/// The peer or this node is cut off.
const PEER: &[Code] = &[Code::NodeIsolated, Code::PeerUnreachable];

/// Every code's description, in order of [`Code`].
pub static CATALOG: [Entry; 28] = [
    Entry {
        code: Code::TunnelDown,
        slug: "tunnel-down",
        title: "tunnel device is down",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[],
        meaning: "The tunnel device is switched off. Setting it down also removed its routes and permanent neighbours, and switching it on does not bring them back.",
        remedy: "Restart the CNI agent of this node, which sets {device} up and programs its routes again; `ip link set {device} up` alone is not enough. If it recurs, see whether NetworkManager manages the device (`nmcli device`).",
    },
    Entry {
        code: Code::TunnelMissing,
        slug: "tunnel-missing",
        title: "tunnel device is gone",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[],
        meaning: "A tunnel device that led to peers has vanished from this node.",
        remedy: "Restart the CNI agent of this node, which makes {device} anew; then look in its log for who deleted it.",
    },
    Entry {
        code: Code::VtepLocalAddressWrong,
        slug: "vtep-local-address-wrong",
        title: "tunnel sends from an address that is not on this host",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[],
        meaning: "The VXLAN device is bound to a source address that this host does not have, so every encapsulated packet dies with a carrier error.",
        remedy: "Restart the CNI agent with the right node address (flannel: --iface, K3s: --node-ip and --flannel-iface); see `ip -d link show {device}` for the address it uses.",
    },
    Entry {
        code: Code::TunnelMtuTooLarge,
        slug: "tunnel-mtu-too-large",
        title: "tunnel MTU does not fit the underlay",
        severity: Severity::Warning,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[],
        meaning: "Full-sized inner packets plus the encapsulation exceed the MTU of the device below: they are fragmented or lost.",
        remedy: "Lower the MTU of the tunnel and of the pods in the CNI's configuration to the underlay's MTU less the encapsulation's overhead.",
    },
    Entry {
        code: Code::RemoteTunnelDown,
        slug: "remote-tunnel-down",
        title: "peer's tunnel device is down",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[DEVICES, PEER],
        meaning: "The peer itself reports that its tunnel device is switched off.",
        remedy: "On {peer}: restart the CNI agent, which sets the device up and programs its routes again.",
    },
    Entry {
        code: Code::VniMismatch,
        slug: "vni-mismatch",
        title: "the two ends use different VNIs",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[DEVICES, &[Code::RemoteTunnelDown], PEER],
        meaning: "Both ends send VXLAN to the same port with different network identifiers; each drops what the other sends.",
        remedy: "Set the same VNI on both ends in the CNI's configuration (flannel: Backend.VNI; Calico: vxlanVNI), then restart its agent on the node that differs.",
    },
    Entry {
        code: Code::VxlanPortMismatch,
        slug: "vxlan-port-mismatch",
        title: "the two ends use different VXLAN ports",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[DEVICES, &[Code::RemoteTunnelDown], PEER],
        meaning: "Each end sends VXLAN to a UDP port on which the other does not listen.",
        remedy: "Set the same port on both ends in the CNI's configuration (flannel: Backend.Port; Calico: vxlanPort), then restart its agent on the node that differs.",
    },
    Entry {
        code: Code::StaleVtepMac,
        slug: "stale-vtep-mac",
        title: "packets go to a VTEP MAC that the peer no longer has",
        severity: Severity::Critical,
        raise_after_ms: 2500,
        clear_after_seconds: 5,
        parents: &[DEVICES, &[Code::RemoteTunnelDown], PEER],
        meaning: "The peer's tunnel device has another MAC than this node's neighbour and forwarding entries say, so the peer drops what it decapsulates as meant for another host.",
        remedy: "Restart the CNI agent on {peer}, which publishes its MAC again; if it recurs at reboots, set MACAddressPolicy=none for the device (systemd.link(5)).",
    },
    Entry {
        code: Code::FdbMissing,
        slug: "fdb-missing",
        title: "no forwarding entry for the peer's VTEP",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[DEVICES, PEER],
        meaning: "The tunnel knows the peer's MAC but not behind which node it is, and it does not learn: packets to the peer are dropped in the tunnel device.",
        remedy: "Restart the CNI agent of this node; or, by hand, `bridge fdb append MAC dev {device} dst {address}`.",
    },
    Entry {
        code: Code::FdbMisdirected,
        slug: "fdb-misdirected",
        title: "the forwarding entry for the peer's VTEP leads to another node",
        severity: Severity::Critical,
        raise_after_ms: 2000,
        clear_after_seconds: 5,
        parents: &[DEVICES, PEER],
        meaning: "Packets for the peer are encapsulated to another node, which drops them as meant for another host: a stale entry, as a rule after the peer's address moved.",
        remedy: "Restart the CNI agent of this node; or, by hand, `bridge fdb replace MAC dev {device} dst {address}`.",
    },
    Entry {
        code: Code::VtepNeighbourMissing,
        slug: "vtep-neighbour-missing",
        title: "no neighbour entry for the peer's VTEP",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[DEVICES, PEER],
        meaning: "The peer's overlay address has no link-layer address on the tunnel, which does not resolve by itself.",
        remedy: "Restart the CNI agent of this node; or, by hand, `ip neigh replace OVERLAY-ADDRESS lladdr MAC dev {device} nud permanent`.",
    },
    Entry {
        code: Code::RouteMissing,
        slug: "route-missing",
        title: "no route to the peer's pods",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[DEVICES, PEER],
        meaning: "Peers of this tunnel have a route each; this one has none. With a default route the packets leave unencapsulated instead of being dropped.",
        remedy: "Restart the CNI agent of this node; with Calico see `calicoctl node status` for the BGP session to {peer}.",
    },
    Entry {
        code: Code::RouteBlackhole,
        slug: "route-blackhole",
        title: "a blackhole route covers the peer's pods",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[DEVICES, PEER],
        meaning: "The most specific route to the peer's overlay drops packets instead of sending them into the tunnel.",
        remedy: "Find who installed it: `ip route get OVERLAY-ADDRESS`, `ip -d route show type blackhole` and `ip rule`; remove it or restore the more specific route.",
    },
    Entry {
        code: Code::RouteBypassesTunnel,
        slug: "route-bypasses-tunnel",
        title: "the route to the peer's pods does not lead into its tunnel",
        severity: Severity::Critical,
        raise_after_ms: 2000,
        clear_after_seconds: 5,
        parents: &[DEVICES, &[Code::RouteMissing], PEER],
        meaning: "The route to the peer's overlay leaves through another device than the tunnel that leads to the peer: a leftover of another CNI, or a default route catching it.",
        remedy: "`ip route get OVERLAY-ADDRESS` shows the route; remove the leftover route, or restart the CNI agent to restore its own.",
    },
    Entry {
        code: Code::LocalOutputDrop,
        slug: "local-output-drop",
        title: "this host drops its own encapsulated packets",
        severity: Severity::Critical,
        raise_after_ms: 0,
        clear_after_seconds: 30,
        parents: &[DEVICES, ENDS, TABLES, PEER],
        meaning: "Packets are encapsulated and then dropped on this host before they reach the NIC: as a rule a firewall rule in OUTPUT.",
        remedy: "`nft list ruleset | grep -n drop` and the counters of rules in the output hook; allow the encapsulation to the other nodes.",
    },
    Entry {
        code: Code::EncapsulationLost,
        slug: "encapsulation-lost",
        title: "the encapsulation does not get through",
        severity: Severity::Critical,
        raise_after_ms: 500,
        clear_after_seconds: 30,
        parents: &[DEVICES, ENDS, TABLES, REFUSED, &[Code::LocalOutputDrop], PEER],
        meaning: "Probes through the tunnel vanish while plain UDP between the same two nodes passes: what carries the encapsulation (its UDP port or IP protocol) is swallowed between the two tunnel devices.",
        remedy: "Allow the encapsulation ({encapsulation}) between the nodes, both ways: cloud firewall or security group, host firewall on {peer} (input), and NSX/ESXi which claims VXLAN ports for itself. If pods still reach each other, only the probes' UDP 9977 is filtered inside the tunnel.",
    },
    Entry {
        code: Code::OverlayLoss,
        slug: "overlay-loss",
        title: "loss inside the tunnel",
        severity: Severity::Warning,
        raise_after_ms: 500,
        clear_after_seconds: 30,
        parents: &[DEVICES, ENDS, TABLES, REFUSED, LOSS, PEER],
        meaning: "More probes through the tunnel are lost than a healthy path loses, and fewer in the underlay.",
        remedy: "Compare drop counters of the tunnel devices on both ends (`ip -s link`), and look for rate limits on the encapsulation's port.",
    },
    Entry {
        code: Code::UnderlayLoss,
        slug: "underlay-loss",
        title: "loss in the underlay",
        severity: Severity::Warning,
        raise_after_ms: 500,
        clear_after_seconds: 30,
        parents: &[&[Code::UnderlayLinkDown], PEER, &[Code::AgentSilent]],
        meaning: "More probes are lost between the two nodes than a healthy path loses, with and without encapsulation.",
        remedy: "Look for errors on the NICs of both nodes (`ip -s link`, `ethtool -S`) and in the network between them; every overlay connection between them suffers.",
    },
    Entry {
        code: Code::MtuBlackhole,
        slug: "mtu-blackhole",
        title: "full-sized packets vanish",
        severity: Severity::Critical,
        raise_after_ms: 500,
        clear_after_seconds: 30,
        parents: &[
            &[Code::TunnelMtuTooLarge],
            DEVICES,
            ENDS,
            TABLES,
            REFUSED,
            LOSS,
            &[Code::OverlayLoss],
            PEER,
        ],
        meaning: "Small packets pass through the tunnel and packets of its full MTU vanish without an ICMP error: something in between has a smaller MTU.",
        remedy: "Lower the MTU of the tunnel and the pods in the CNI's configuration, or raise the MTU of the path; `ping -M do -s SIZE` between the nodes finds the limit.",
    },
    Entry {
        code: Code::PeerUnreachable,
        slug: "peer-unreachable",
        title: "nothing of the peer answers",
        severity: Severity::Critical,
        raise_after_ms: 500,
        clear_after_seconds: 30,
        parents: &[&[Code::UnderlayLinkDown, Code::NodeIsolated]],
        meaning: "Neither the peer's agent nor its kernel answers, with or without encapsulation; other peers do.",
        remedy: "If the evidence says that this host's kernel refused to send, see `ip route get {address}` and `ip rule`. Else see whether {peer} is powered on and its NIC is up; then the network between the two nodes.",
    },
    Entry {
        code: Code::NodeIsolated,
        slug: "node-isolated",
        title: "nothing of any peer answers",
        severity: Severity::Critical,
        raise_after_ms: 500,
        clear_after_seconds: 30,
        parents: &[&[Code::UnderlayLinkDown]],
        meaning: "No peer answers in any way: this node is cut off.",
        remedy: "Look at this node's NIC, cable, VLAN, security group and default route before anything else.",
    },
    Entry {
        code: Code::UnderlayLinkDown,
        slug: "underlay-link-down",
        title: "the NIC below the tunnels is down",
        severity: Severity::Critical,
        raise_after_ms: 500,
        clear_after_seconds: 5,
        parents: &[],
        meaning: "The device that leads to the peers is switched off or has no carrier.",
        remedy: "`ip link show {device}`; check cable, switch port, bond and the hypervisor's side.",
    },
    Entry {
        code: Code::AgentSilent,
        slug: "agent-silent",
        title: "the peer's agent does not answer",
        severity: Severity::Warning,
        raise_after_ms: 15000,
        clear_after_seconds: 5,
        parents: &[&[Code::UnderlayLinkDown], PEER],
        meaning: "The peer's kernel answers, or cannot be asked for want of ICMP, and its overlaywatch agent does not: nothing is said about the network, nothing is known about the overlay to this peer.",
        remedy: "On {peer}: `systemctl status overlaywatch` and its journal. If it runs, a firewall keeps UDP 9977 from it, and perhaps the encapsulation too.",
    },
    Entry {
        code: Code::ProbePortFiltered,
        slug: "probe-port-filtered",
        title: "the probes' own port is filtered",
        severity: Severity::Warning,
        raise_after_ms: 5000,
        clear_after_seconds: 10,
        parents: &[&[Code::UnderlayLinkDown], PEER, &[Code::AgentSilent]],
        meaning: "Probes to UDP 9977 vanish while the peer answers otherwise, or its own requests still arrive: a firewall blocks this product. Whether it blocks the overlay too can only be told where probes through the tunnel are answered.",
        remedy: "Allow UDP 9977 between the nodes, both ways; without it the two directions cannot be told apart.",
    },
    Entry {
        code: Code::ForwardingOff,
        slug: "forwarding-off",
        title: "IP forwarding is off",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[],
        meaning: "This node has pods behind a tunnel and does not forward packets: pods reach nothing outside of the node.",
        remedy: "`sysctl -w net.ipv4.ip_forward=1`, and find which file under /etc/sysctl.d or which service reset it.",
    },
    Entry {
        code: Code::PeerDeparted,
        slug: "peer-departed",
        title: "a peer is gone from the kernel",
        severity: Severity::Info,
        raise_after_ms: 5000,
        clear_after_seconds: 5,
        parents: &[DEVICES],
        meaning: "Routes and forwarding entries of a peer were removed and nothing answers there: as a rule the node left the cluster.",
        remedy: "None if {peer} left on purpose; it is forgotten by itself. Else see why the CNI agent removed it.",
    },
    Entry {
        code: Code::EncapsulationRefused,
        slug: "encapsulation-refused",
        title: "the peer's kernel refuses the encapsulation",
        severity: Severity::Critical,
        raise_after_ms: 3000,
        clear_after_seconds: 5,
        parents: &[DEVICES, ENDS, PEER],
        meaning: "The peer answers encapsulated packets with ICMP: protocol unreachable (code 2) means that its kernel has no module for IPIP, port unreachable (code 3) that no tunnel device listens for them, codes 9, 10 and 13 that a firewall rejects them.",
        remedy: "On {peer}, code 2: `modprobe ipip`; code 3: `ip -d link show type vxlan` or `type ipip` for a device that is missing, down or on another port, and restart the CNI agent; else: allow {encapsulation} from this node in its firewall.",
    },
    Entry {
        code: Code::UnexplainedLoss,
        slug: "unexplained-loss",
        title: "packets vanish between two counted hops",
        severity: Severity::Critical,
        raise_after_ms: 500,
        clear_after_seconds: 30,
        parents: &[
            DEVICES,
            ENDS,
            TABLES,
            REFUSED,
            &[Code::LocalOutputDrop, Code::ForwardingOff],
            PEER,
        ],
        meaning: "Packets were counted at one hop and are missing at the next, and none of the rules knows the reason; the evidence names the kernel's own drop reason and function where it gave one.",
        remedy: "Read the drop reason and function in the evidence: NETFILTER_DROP is a firewall rule on the node named there (`nft list ruleset`, `iptables-save -c`), IP_RPFILTER its rp_filter, OTHERHOST a wrong MAC, TC_INGRESS or TC_EGRESS another program on the device (`tc filter show`, `bpftool net`), NO_SOCKET a tunnel device that is not there; without one, watch `perf trace -e skb:kfree_skb` there.",
    },
];

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
    fn parents_form_no_circle() {
        fn reaches(from: Code, to: Code, depth: usize) -> bool {
            depth > 0 && from.entry().parents().any(|p| p == to || reaches(p, to, depth - 1))
        }
        for entry in &CATALOG {
            assert!(!reaches(entry.code, entry.code, 8), "{} explains itself", entry.slug);
        }
    }
}
