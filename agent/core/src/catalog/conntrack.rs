//! Connection tracking.

use super::{Code, Entry, Severity};

pub(super) const ENTRIES: &[Entry] = &[
    Entry {
        code: Code::ConntrackFull,
        slug: "conntrack-full",
        title: "the table of tracked connections is full",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 30,
        parents: &[],
        meaning: "The kernel tracks as many connections as it may: packets of new ones are dropped, or entries of others evicted for them. Tunnels, DNS and services fail at random.",
        remedy: "`sysctl -w net.netfilter.nf_conntrack_max={limit}` in the host's own network namespace, and with Kubernetes kube-proxy's `--conntrack-max-per-core`; `conntrack -L` shows whose connections fill it.",
    },
    Entry {
        code: Code::ConntrackNearlyFull,
        slug: "conntrack-nearly-full",
        title: "the table of tracked connections is nearly full",
        severity: Severity::Warning,
        raise_after_ms: 5000,
        clear_after_seconds: 30,
        parents: &[&[Code::ConntrackFull]],
        meaning: "Three quarters of the connections that the kernel may track are taken. Once all are, packets of new connections are dropped: tunnels, DNS and services fail at random.",
        remedy: "Before that, `sysctl -w net.netfilter.nf_conntrack_max={limit}` in the host's own network namespace, and with Kubernetes kube-proxy's `--conntrack-max-per-core`; see who fills it with `conntrack -L`.",
    },
    Entry {
        code: Code::ConntrackTunnelFlows,
        slug: "conntrack-tunnel-flows",
        title: "tunnel packets fill the table of tracked connections",
        severity: Severity::Warning,
        raise_after_ms: 5000,
        clear_after_seconds: 60,
        parents: &[],
        meaning: "The encapsulated packets themselves are tracked, and since the two directions of VXLAN are two flows, none of them ever sees a reply. They crowd out connections that matter, and cost time on each packet; the table may fill with them.",
        remedy: "Do not track them: `iptables -t raw -I PREROUTING {match} -j NOTRACK` and the same with `OUTPUT`, on each node (over IPv6 `ip6tables`). Calico does so by itself from 3.29 on.",
    },
];
