//! Faults at the same time: each gets its own verdict, and none hides the other.

use overlaywatch_core::catalog::Code;

use super::expected::{
    BOTH, DECAPSULATION, ENCAPSULATION, INBOUND, OUT_OR_BOTH, OUTBOUND, WIRE, counts, misses, says,
};
use super::firewall::{filtered_in, filtered_out};
use super::underlay::{block_tunnel, middle_passes};
use super::{A, B, C, D, Fault, PLAIN, Shapes, addresses};
use crate::filter::{self, Drops, Place};
use crate::traffic::{nodes, pods};

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "two-faults-two-pairs",
        about: "the VXLAN port is blocked between one pair; another node lost a forwarding entry",
        nodes: 4,
        inject: |cluster| {
            block_tunnel(cluster, true)?;
            cluster.lose_forwarding_entry(C, D)
        },
        heal: |cluster| {
            middle_passes(cluster)?;
            cluster.program(C)
        },
        breaks: &[pods(A, B), pods(B, A), pods(C, D)],
        spares: &[nodes(A, B), pods(D, C), pods(A, C), pods(B, D)],
        expected: &[
            says(A, Code::EncapsulationLost, B, BOTH, WIRE),
            says(B, Code::EncapsulationLost, A, BOTH, WIRE),
            says(C, Code::FdbMissing, D, OUTBOUND, ENCAPSULATION),
            misses(D, C, ENCAPSULATION),
        ],
        ..PLAIN
    },
    Fault {
        name: "two-faults-one-pair",
        about: "one node's tunnel device uses another VNI, and the way there drops the VXLAN port",
        inject: |cluster| {
            block_tunnel(cluster, false)?;
            cluster.remake_tunnel(B, |vtep| vtep.vni += 1)
        },
        heal: |cluster| {
            cluster.remake_tunnel(B, |_| {})?;
            middle_passes(cluster)
        },
        breaks: &[pods(A, B), pods(B, A), pods(C, B), pods(B, C)],
        spares: &[pods(A, C), pods(C, A), nodes(A, B)],
        expected: &[
            // What stops A's packets first, beside what would stop them next.
            says(A, Code::EncapsulationLost, B, OUT_OR_BOTH, WIRE),
            says(A, Code::VniMismatch, B, BOTH, DECAPSULATION),
            says(B, Code::VniMismatch, A, BOTH, DECAPSULATION),
            says(B, Code::VniMismatch, C, BOTH, DECAPSULATION),
            says(C, Code::VniMismatch, B, BOTH, DECAPSULATION),
        ],
        counted: &[counts(A, B, OUT_OR_BOTH, WIRE), counts(B, A, OUT_OR_BOTH, DECAPSULATION)],
        ..PLAIN
    },
    Fault {
        name: "output-drop-and-input-drop",
        about: "one node drops the encapsulation to a peer in its output; a third drops it from \
                the same node in its input",
        shapes: Shapes::Each,
        inject: |cluster| {
            let (a, b) = addresses(cluster, A, B)?;
            let to_b = Drops { to: Some(b), ..Drops::tunnelled(cluster.shape) };
            let from_a = Drops { from: Some(a), ..Drops::tunnelled(cluster.shape) };
            filter::drop(&cluster.node(A)?.netns, Place::Output, &[to_b])?;
            filter::drop(&cluster.node(C)?.netns, Place::Input, &[from_a])
        },
        heal: |cluster| {
            filter::pass(&cluster.node(A)?.netns, Place::Output)?;
            filter::pass(&cluster.node(C)?.netns, Place::Input)
        },
        breaks: &[pods(A, B), pods(A, C)],
        spares: &[pods(B, A), pods(C, A), pods(B, C), nodes(A, B), nodes(A, C)],
        expected: &[
            filtered_out(A).telling(&["hook output", "ip daddr"]),
            says(A, Code::UnexplainedLoss, C, OUTBOUND, DECAPSULATION),
            misses(B, A, ENCAPSULATION),
            filtered_in(C).telling(&["hook input", "ip saddr"]),
        ],
        counted: &[counts(A, B, OUTBOUND, ENCAPSULATION), counts(C, A, INBOUND, DECAPSULATION)],
        unlike: &[Code::EncapsulationLost],
        ..PLAIN
    },
];
