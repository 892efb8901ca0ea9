//! Routing sessions, and services of the node.

use super::groups::{DEVICES, PEER, SERVICE};
use super::{Code, Entry, Severity};

pub(super) const ENTRIES: &[Entry] = &[
    Entry {
        code: Code::BgpSessionDown,
        slug: "bgp-session-down",
        title: "no BGP session with a peer",
        severity: Severity::Warning,
        raise_after_ms: 5000,
        clear_after_seconds: 5,
        parents: &[DEVICES, PEER],
        meaning: "This node's BGP daemon has no session with a node that it had one with, or keeps trying to open one. Routes to that node's pods are withdrawn with it, or stay as they were and are no longer kept up to date.",
        remedy: "Allow TCP 179 between the nodes, both ways: `nc -vz {address} 179` from here; see that the BGP daemon runs on {peer}, and `calicoctl node status` or `birdc show protocols` for what it says of the session.",
    },
    Entry {
        code: Code::FelixNotReady,
        slug: "felix-not-ready",
        title: "Felix is not ready",
        severity: Severity::Warning,
        raise_after_ms: 2000,
        clear_after_seconds: 5,
        parents: SERVICE,
        meaning: "Calico's agent on this node answers that it is not ready, or does not answer: it could not write its routes, sets or rules, and changes of policies and pods do not take effect here.",
        remedy: "Its log names the table, the set or the interface that it fails at: `kubectl -n calico-system logs -c calico-node PODNAME | grep -E 'ERROR|WARNING|PANIC'` (kube-system in older installations).",
    },
    Entry {
        code: Code::ServiceUnhealthy,
        slug: "service-unhealthy",
        title: "a service of this node says that it is not well",
        severity: Severity::Warning,
        raise_after_ms: 2000,
        clear_after_seconds: 5,
        parents: SERVICE,
        meaning: "A service that pods' networking rests on answers with an error, or does not answer, on its own health port.",
        remedy: "Its log says why: `journalctl -u kubelet` for the kubelet, `kubectl -n kube-system logs ds/cilium` and `cilium-dbg status` for Cilium.",
    },
];
