//! Programs and queues on the way through a device.

use super::groups::DEVICES;
use super::{Code, Entry, Severity};

pub(super) const ENTRIES: &[Entry] = &[
    Entry {
        code: Code::ForeignProgramDrops,
        slug: "foreign-program-drops",
        title: "another program on a device drops packets between nodes",
        severity: Severity::Critical,
        raise_after_ms: 0,
        clear_after_seconds: 5,
        parents: &[DEVICES],
        meaning: "A classifier, BPF or XDP program that somebody attached to the device drops packets that other nodes wait for. It works apart from netfilter, so no firewall rule shows it.",
        remedy: "{show} show it; ask its owner, or remove it: {detach}.",
    },
    Entry {
        code: Code::QdiscDrops,
        slug: "qdisc-drops",
        title: "a device's queue drops packets between nodes",
        severity: Severity::Warning,
        raise_after_ms: 0,
        clear_after_seconds: 10,
        parents: &[DEVICES],
        meaning: "The queueing discipline of a device takes fewer packets than are to be sent: a rate limit, or a queue that is too short for the load.",
        remedy: "`tc -s qdisc show dev {device}` shows its limits and drops; raise them, or `tc qdisc del dev {device} root` to have the kernel's default again.",
    },
    Entry {
        code: Code::CiliumProgramTwice,
        slug: "cilium-program-twice",
        title: "one program of Cilium is on a hook twice",
        severity: Severity::Warning,
        // An agent that is replaced has both for some seconds.
        raise_after_ms: 20_000,
        clear_after_seconds: 5,
        parents: &[],
        meaning: "The same program of Cilium is attached to one side of a device more than once, as an agent leaves it behind that ended in the middle of its work or attaches by another way than the one before it. Packets go through both; the older one judges by maps that nobody keeps any more, and may drop or misdirect them after the next change of an endpoint or a policy.",
        remedy: "{show} show them. Restart the cilium-agent of this node; if the older one stays, remove it: {detach}.",
    },
    Entry {
        code: Code::ChecksumErrors,
        slug: "checksum-errors",
        title: "packets between nodes come with a wrong checksum",
        severity: Severity::Critical,
        raise_after_ms: 0,
        clear_after_seconds: 10,
        parents: &[DEVICES],
        meaning: "This node's kernel drops packets of other nodes because their UDP or TCP checksum is wrong. As a rule an offload of checksums is to blame, on the sender or in between: a NIC or a hypervisor that computes none for encapsulated packets, or a kernel before 5.6.13, 5.4.41, 4.19.123 and 4.14.181, which leaves it out for packets to a service that go through VXLAN (they come through after 1, 3, 7 or 63 seconds).",
        remedy: "On the node that sends them: `ethtool -K flannel.1 tx-checksum-ip-generic off`, or whatever its tunnel device is called, then `ethtool -K eth0 tx off` for the NIC below it. If that ends it, bring its kernel, or its NIC's driver and firmware, up to date; the evidence has those of this node. What rewrites packets on the way (a rule of nftables with `checksum set`, a middlebox) does the same.",
    },
    Entry {
        code: Code::SoftirqBacklog,
        slug: "softirq-backlog",
        title: "a CPU drops packets because it cannot receive as fast as they come",
        severity: Severity::Warning,
        raise_after_ms: 1000,
        clear_after_seconds: 30,
        parents: &[],
        meaning: "The kernel's queue between a device and the IP stack is full (net.core.netdev_max_backlog), and packets between nodes are dropped before anything looked at them: too many for the CPU that receives them.",
        remedy: "`sysctl -w net.core.netdev_max_backlog=10000 net.core.netdev_budget=600` gives it more room; spread the load over CPUs (`ethtool -L` for more queues, or rps_cpus under /sys/class/net/DEVICE/queues), and see with `mpstat -P ALL 1` which CPU has no time left and for what.",
    },
    Entry {
        code: Code::NeighbourTableOverflow,
        slug: "neighbour-table-overflow",
        title: "the kernel's neighbour table is full",
        severity: Severity::Critical,
        raise_after_ms: 500,
        clear_after_seconds: 30,
        parents: &[],
        meaning: "The kernel has no room for further neighbours (pods, nodes, VTEPs: all of this machine's network namespaces share one table for each family) and drops what it cannot resolve an address for; a CNI agent that programs neighbours gets an error.",
        remedy: "`sysctl -w {thresholds}`, and keep it in a file under /etc/sysctl.d; `ip -s neigh show | wc -l` in the namespaces of host and pods shows who has that many.",
    },
];
