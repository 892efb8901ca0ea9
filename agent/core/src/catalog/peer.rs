//! The peer or this node as a whole.

use super::groups::{DEVICES, PEER};
use super::{Code, Entry, Severity};

pub(super) const ENTRIES: &[Entry] = &[
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
];
