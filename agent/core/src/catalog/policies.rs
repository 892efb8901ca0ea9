//! Network policies, and who keeps them.

use super::{Code, Entry, Severity};

pub(super) const ENTRIES: &[Entry] = &[Entry {
    code: Code::NetworkPolicyLeftover,
    slug: "network-policy-leftover",
    title: "network policies are in force that nobody maintains",
    severity: Severity::Warning,
    // An upgrade stops the one pod before it fetches the image of the next.
    raise_after_ms: 120_000,
    clear_after_seconds: 5,
    parents: &[],
    meaning: "Packets of pods still go through the chains of kube-router's network policy controller, which K3s has within it, too, and for two minutes nobody has run on this node who keeps them. What they allow are the pods of back then: a new pod that gets the address of an old one is treated by that one's policies, and rejected where those do not know its peers.",
    remedy: "When the controller is not to come back: {unhook}. The other chains and its sets are then in nobody's way; a restart of the node removes them, and so does `k3s-killall.sh` where K3s was. Else start the controller again.",
}];
