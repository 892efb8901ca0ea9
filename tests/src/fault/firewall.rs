//! What firewalls and classifiers of the nodes themselves drop.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlaywatch_core::catalog::Code;
use overlaywatch_core::finding::{Direction, Thing};
use overlaywatch_core::ladder::{Hop, Segment};

use super::expected::{
    DECAPSULATION, DELIVERY, ENCAPSULATION, Expected, INBOUND, LOCAL_STACK, OUTBOUND, Subject,
    WHOLE_WAY, counts, may_speak, misses, says, says_itself,
};
use super::{A, B, C, Fault, HARD, LIVE, Limits, PLAIN, Shapes, addresses};
use crate::classifier::{self, Way};
use crate::filter::{self, Drops, Place};
use crate::topology::Cluster;
use crate::traffic::{nodes, pods};

pub(super) const FAULTS: &[Fault] = &[
    REMOTE_INPUT_DROP,
    LOCAL_OUTPUT_DROP,
    REMOTE_INPUT_DROP_UNCOUNTED,
    Fault {
        name: "lost-before-a-firewall-uncounted",
        about: "the path loses the encapsulation before a rule that would drop it, and no agent has \
                eBPF: the rule's counter stands still",
        shapes: Shapes::Each,
        ebpf: false,
        inject: |cluster| {
            let (a, b) = addresses(cluster, A, B)?;
            let of_a = Drops { from: Some(a), ..Drops::tunnelled(cluster.shape) };
            let lost = Drops { to: Some(b), ..of_a.clone() };
            filter::drop(&cluster.switch, Place::Middle, &[lost])?;
            filter::drop(&cluster.node(B)?.netns, Place::Input, &[of_a])
        },
        heal: |cluster| {
            filter::pass(&cluster.node(B)?.netns, Place::Input)?;
            filter::pass(&cluster.switch, Place::Middle)
        },
        breaks: &[pods(A, B)],
        spares: &[pods(B, A), nodes(A, B), pods(A, C)],
        expected: &[
            says(A, Code::EncapsulationLost, B, OUTBOUND, WHOLE_WAY),
            says(B, Code::EncapsulationLost, A, INBOUND, WHOLE_WAY),
        ],
        unlike: &[Code::EncapsulationFiltered],
        ..PLAIN
    },
    Fault {
        name: "tc-egress-drop",
        about: "somebody else's classifier on one node's NIC drops the encapsulation on its way out",
        shapes: Shapes::Each,
        inject: |cluster| {
            classifier::drop_tunnelled(&cluster.node(A)?.netns, Way::Egress, cluster.shape)
        },
        heal: |cluster| classifier::pass(&cluster.node(A)?.netns, Way::Egress),
        breaks: &[pods(A, B), pods(A, C)],
        // Not A's other traffic: attaching a classifier was seen to cost a packet
        // of it, also where no agent ran.
        spares: &[pods(B, A), pods(B, C)],
        // A classifier is no wire: what it drops has not left the NIC.
        expected: &[
            drops_by_program(A, OUTBOUND, ENCAPSULATION, "eth0 egress bpf pref 7 handle 0x1"),
            misses(B, A, ENCAPSULATION),
            misses(C, A, ENCAPSULATION),
        ],
        counted: &[counts(A, B, OUTBOUND, ENCAPSULATION), counts(A, C, OUTBOUND, ENCAPSULATION)],
        unlike: &[Code::EncapsulationLost, Code::QdiscDrops],
        ..PLAIN
    },
    Fault {
        name: "tc-ingress-drop",
        about: "somebody else's classifier on one node's NIC drops the encapsulation on its way in",
        shapes: Shapes::Each,
        inject: |cluster| {
            classifier::drop_tunnelled(&cluster.node(B)?.netns, Way::Ingress, cluster.shape)
        },
        heal: |cluster| classifier::pass(&cluster.node(B)?.netns, Way::Ingress),
        breaks: &[pods(A, B), pods(C, B)],
        spares: &[pods(B, A), nodes(A, B), pods(A, C)],
        expected: &[
            says(A, Code::UnexplainedLoss, B, OUTBOUND, DECAPSULATION),
            says(C, Code::UnexplainedLoss, B, OUTBOUND, DECAPSULATION),
            drops_by_program(B, INBOUND, DECAPSULATION, "eth0 ingress bpf pref 7 handle 0x1"),
        ],
        counted: &[counts(B, A, INBOUND, DECAPSULATION), counts(B, C, INBOUND, DECAPSULATION)],
        unlike: &[Code::EncapsulationLost, Code::EncapsulationRefused],
        ..PLAIN
    },
    Fault {
        name: "tunnel-queue-drop",
        about: "a rate limit on one node's tunnel device lets no packet through",
        shapes: Shapes::Each,
        inject: |cluster| {
            let device = cluster.shape.device();
            let limit = format!("qdisc add dev {device} root tbf rate 1mbit burst 1600 limit 20\n");
            cluster.node(A)?.netns.tc(&limit)
        },
        heal: |cluster| {
            let device = cluster.shape.device();
            cluster.node(A)?.netns.tc(&format!("qdisc del dev {device} root\n"))
        },
        breaks: &[pods(A, B), pods(A, C)],
        spares: &[pods(B, A), nodes(A, B), pods(B, C)],
        expected: &[
            Expected {
                directions: OUTBOUND,
                hops: QUEUE,
                ..says_itself(A, Code::QdiscDrops, Subject::Tunnel)
            }
            .telling(&["tbf of "]),
            misses(B, A, ENCAPSULATION),
            misses(C, A, ENCAPSULATION),
        ],
        // The sender is told that the queue is full (ENOBUFS), so that there it is
        // no loss of the path.
        counted: &[may_speak(A, B), may_speak(A, C)],
        unlike: &[Code::ForeignProgramDrops, Code::EncapsulationLost, Code::SoftirqBacklog],
        ..PLAIN
    },
    Fault {
        name: "tc-beside",
        about: "somebody else's classifier and a rate limit on one node's NIC drop nothing of ours",
        shapes: Shapes::Each,
        inject: |cluster| {
            let netns = &cluster.node(A)?.netns;
            // Nobody sends to the discard service (RFC 863).
            classifier::drop_udp(netns, Way::Ingress, 9)?;
            netns.tc("qdisc add dev eth0 root tbf rate 1gbit burst 1mbit limit 10mbit\n")
        },
        heal: |cluster| {
            let netns = &cluster.node(A)?.netns;
            netns.tc("qdisc del dev eth0 root\n")?;
            classifier::pass(netns, Way::Ingress)
        },
        unlike: &[Code::ForeignProgramDrops, Code::QdiscDrops],
        limits: Limits { settle: Duration::from_secs(20), ..HARD },
        ..PLAIN
    },
    Fault {
        name: "forward-policy-drop-nft",
        about: "one node's nftables forward nothing by policy, as Docker sets it",
        shapes: Shapes::Each,
        inject: |cluster| filter::forward_nothing(&cluster.node(B)?.netns),
        heal: |cluster| filter::forward_again(&cluster.node(B)?.netns),
        expected: &[says_itself(
            B,
            Code::ForwardPolicyDrop,
            Subject::Thing(Thing::Chain, "ip filter FORWARD"),
        )
        .telling(&["policy drop"])],
        counted: &[counts(B, A, INBOUND, DELIVERY), counts(B, C, OUTBOUND, LOCAL_STACK)],
        unlike: &[Code::ForwardingOff, Code::EncapsulationLost],
        ..FORWARD_POLICY
    },
    Fault {
        name: "forward-policy-drop-legacy",
        about: "one node's legacy iptables forward nothing by policy",
        shapes: Shapes::Each,
        inject: |cluster| legacy_policy(cluster, "DROP"),
        heal: |cluster| legacy_policy(cluster, "ACCEPT"),
        ..FORWARD_POLICY
    },
];

/// In VXLAN; IPIP has another word for what is dropped.
pub(super) const REMOTE_INPUT_DROP: Fault = Fault {
    name: "remote-input-drop",
    about: "a node's firewall drops VXLAN in its input",
    inject: |cluster| drop_all(cluster, B, Place::Input),
    heal: |cluster| filter::pass(&cluster.node(B)?.netns, Place::Input),
    breaks: &[pods(A, B), pods(C, B)],
    spares: &[pods(B, A), nodes(A, B), pods(A, C)],
    expected: &[
        says(A, Code::UnexplainedLoss, B, OUTBOUND, DECAPSULATION),
        says(C, Code::UnexplainedLoss, B, OUTBOUND, DECAPSULATION),
        filtered_in(B).telling(&["hook input", "udp dport", "NETFILTER_DROP"]),
    ],
    counted: &[counts(B, A, INBOUND, DECAPSULATION), counts(B, C, INBOUND, DECAPSULATION)],
    unlike: &[Code::EncapsulationLost, Code::EncapsulationRefused],
    ..PLAIN
};

/// The same on the way out.
pub(super) const LOCAL_OUTPUT_DROP: Fault = Fault {
    name: "local-output-drop",
    about: "a node's firewall drops VXLAN in its output",
    inject: |cluster| drop_all(cluster, A, Place::Output),
    heal: |cluster| filter::pass(&cluster.node(A)?.netns, Place::Output),
    breaks: &[pods(A, B), pods(A, C)],
    spares: &[pods(B, A), nodes(A, B), pods(B, C)],
    expected: &[
        filtered_out(A).telling(&["hook output", "udp dport", "handle", "NETFILTER_DROP"]),
        misses(B, A, ENCAPSULATION),
        misses(C, A, ENCAPSULATION),
    ],
    counted: &[counts(A, B, OUTBOUND, ENCAPSULATION), counts(A, C, OUTBOUND, ENCAPSULATION)],
    ..PLAIN
};

/// The same on the way in, without eBPF.
pub(super) const REMOTE_INPUT_DROP_UNCOUNTED: Fault = Fault {
    name: "remote-input-drop-uncounted",
    about: "a node's firewall drops VXLAN in its input, and no agent has eBPF: the rule's own \
            counter tells",
    ebpf: false,
    inject: |cluster| drop_all(cluster, B, Place::Input),
    heal: |cluster| filter::pass(&cluster.node(B)?.netns, Place::Input),
    breaks: &[pods(A, B), pods(C, B)],
    spares: &[pods(B, A), nodes(A, B), pods(A, C)],
    expected: &[
        says(A, Code::EncapsulationLost, B, OUTBOUND, WHOLE_WAY),
        says(C, Code::EncapsulationLost, B, OUTBOUND, WHOLE_WAY),
        filtered_in(B).telling(&["hook input", "udp dport", "its counter grew by"]),
    ],
    counted: &[counts(B, A, INBOUND, WHOLE_WAY), counts(B, C, INBOUND, WHOLE_WAY)],
    unlike: &[Code::UnexplainedLoss, Code::LocalOutputDrop],
    ..PLAIN
};

/// Between what was given to the tunnel device and the outer packet.
const QUEUE: &[Segment] = &[Segment { from: Hop::Sent, to: Hop::LeftNic }];

/// A node says of a program on its NIC that it drops packets.
const fn drops_by_program(
    node: usize,
    directions: &'static [Direction],
    hops: &'static [Segment],
    name: &'static str,
) -> Expected {
    let subject = Subject::Thing(Thing::Program, name);
    Expected { directions, hops, ..says_itself(node, Code::ForeignProgramDrops, subject) }
}

/// Probes are not forwarded: live traffic alone tells, on the node that drops it.
const FORWARD_POLICY: Fault = Fault {
    breaks: &[pods(A, B), pods(B, C)],
    spares: &[nodes(A, B), pods(A, C), pods(C, A)],
    expected: &[misses(B, A, DELIVERY), says(B, Code::UnexplainedLoss, C, OUTBOUND, LOCAL_STACK)],
    // What legacy tables say is not read.
    unlike: &[Code::ForwardingOff, Code::EncapsulationLost, Code::ForwardPolicyDrop],
    limits: LIVE,
    ..PLAIN
};

/// A node names the chain of the lab's own rules ([`filter::drop`]) in its output.
pub(super) const fn filtered_out(node: usize) -> Expected {
    Expected { directions: OUTBOUND, hops: ENCAPSULATION, ..filtered(node) }
}

/// The same of its input.
pub(super) const fn filtered_in(node: usize) -> Expected {
    Expected { directions: INBOUND, hops: DECAPSULATION, ..filtered(node) }
}

const fn filtered(node: usize) -> Expected {
    let chain = Subject::Thing(Thing::Chain, "ip overlaywatch-lab drops");
    says_itself(node, Code::EncapsulationFiltered, chain)
}

/// Drops all of the encapsulation at a place of a node.
fn drop_all(cluster: &Cluster, node: usize, place: Place) -> Result<()> {
    filter::drop(&cluster.node(node)?.netns, place, &[Drops::tunnelled(cluster.shape)])
}

fn legacy_policy(cluster: &Cluster, policy: &str) -> Result<()> {
    let output = cluster
        .node(B)?
        .netns
        .command("iptables-legacy")
        .args(["-w", "-P", "FORWARD", policy])
        .output()
        .context("cannot run iptables-legacy: install iptables")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "iptables-legacy failed: {}", said.trim());
    Ok(())
}
