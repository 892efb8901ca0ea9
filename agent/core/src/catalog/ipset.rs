//! IP sets and the tools that read them.

use super::{Code, Entry, Severity};

pub(super) const ENTRIES: &[Entry] = &[
    Entry {
        code: Code::IpsetReaderTooOld,
        slug: "ipset-reader-too-old",
        title: "Calico's own ipset cannot read a set",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[],
        meaning: "Somebody made a set with a newer revision than the ipset inside of calico-node's image knows. Felix lists its own sets, up to Calico 3.27.0 also those of others, and fails on this one (\"Kernel and userspace incompatible: settype … with revision … not supported by userspace\"): its readiness probe answers 503, and no rule, set or route of a new or changed pod is programmed. Which ipset the host has does not matter: upgrading it changes nothing.",
        remedy: "First stop whoever makes sets anew with a newer tool; the evidence names it. K3s: restart server and agents with `--disable-network-policy` (a node that was not restarted still runs the controller); kube-router: 2.7.0 or later. Then give each set that the evidence names the revision that calico-node's own ipset makes; its members stay: on this node `ipset save {name} | sed -E 's/^(\\w+) \\S+/\\1 OLD/; s/ bucketsize \\S+ initval \\S+//' | crictl exec -i $(crictl ps -q --name '^calico-node$' --label io.kubernetes.pod.namespace=kube-system) ipset restore && ipset swap OLD {name} && ipset destroy OLD` (calico-system, where the operator installed it; `kubectl exec -i` into that pod does the same). Run the container's ipset in no other way: not with the host's rights. A set that is neither Calico's nor in use can be removed instead: `ipset destroy {name}`. At last restart calico-node. Calico 3.30.6, 3.31.3 and 3.32.0 heal such sets themselves.",
    },
    Entry {
        code: Code::IpsetReaderBehind,
        slug: "ipset-reader-behind",
        title: "A network policy controller's ipset cannot read a set",
        severity: Severity::Warning,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        // The same sets, and the same writer.
        parents: &[&[Code::IpsetReaderTooOld]],
        meaning: "A controller that saves all sets (`ipset save`) has an ipset that does not know the revision of one of them. Its next synchronisation fails, and network policies stay as they are.",
        remedy: "Give the controller's image an ipset as new as that of whoever made the set, or stop that one; the evidence names both. A set that nothing refers to can be removed: `ipset destroy {name}`.",
    },
    Entry {
        code: Code::IpsetFull,
        slug: "ipset-full",
        title: "An IP set of the container network is full",
        severity: Severity::Critical,
        raise_after_ms: 1000,
        clear_after_seconds: 5,
        parents: &[],
        meaning: "The kernel refuses every further member (\"Set … is full, maxelem … reached\"): rules do not know the addresses that are missing, so that new pods or nodes are dropped or not covered by a policy.",
        remedy: "`ipset list -t {name}` shows `maxelem`. Raise it where the set's owner is configured (Felix: `maxIpsetSize`), or by hand, with an ipset that is no newer than the owner's (else that one cannot read the set): `ipset create BIG {kind} maxelem N` with the other options of the set's header, fill it, `ipset swap BIG {name}`, `ipset destroy BIG`.",
    },
    Entry {
        code: Code::IpsetNearlyFull,
        slug: "ipset-nearly-full",
        title: "An IP set that rules refer to is nearly full",
        severity: Severity::Warning,
        raise_after_ms: 1000,
        clear_after_seconds: 10,
        parents: &[],
        meaning: "At least 95 % of the members that fit are in it; all of them where no controller of the container network made the set, as a list of addresses to block, which may be meant to be so. Once it is full the kernel refuses more, and rules do not know the addresses that are missing.",
        remedy: "Find out whether its members are wanted: `ipset list {name} | head`. Raise `maxelem` where the set's owner is configured (Felix: `maxIpsetSize`) before it is full.",
    },
];
