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
        meaning: "A classifier or BPF program that somebody attached to the device drops packets that other nodes wait for. It works apart from netfilter, so no firewall rule shows it.",
        remedy: "`tc -s filter show dev {tc-device} {tc-side}` and `bpftool net show dev {tc-device}` show it; ask its owner, or remove it: {detach}.",
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
];
