//! Faults at the same time: each gets its own verdict, and none hides the other.

use overlaywatch_core::catalog::Code;

use super::underlay::{block_tunnel, middle_passes};
use super::{
    A, ANYWHERE, B, BEFORE_TUNNEL, BOTH, C, D, Fault, OUTBOUND, PLAIN, hears_nothing, says,
};
use crate::traffic::{nodes, pods};

pub(super) const FAULTS: &[Fault] = &[TWO_PAIRS];

const TWO_PAIRS: Fault = Fault {
    name: "two-faults",
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
        says(A, Code::EncapsulationLost, B, BOTH, ANYWHERE),
        says(B, Code::EncapsulationLost, A, BOTH, ANYWHERE),
        says(C, Code::FdbMissing, D, OUTBOUND, BEFORE_TUNNEL),
        hears_nothing(D, C),
    ],
    ..PLAIN
};
