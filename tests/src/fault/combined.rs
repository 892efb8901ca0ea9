//! Faults at the same time: each gets its own verdict, and none hides the other.

use overlaywatch_core::catalog::Code;

use super::addresses;
use super::underlay::{block_tunnel, middle_passes};
use super::{
    A, ANYWHERE, B, BEFORE_TUNNEL, BOTH, C, D, Fault, OUTBOUND, PLAIN, hears_nothing, says,
};
use crate::filter::{self, Drops, Place};
use crate::traffic::{nodes, pods};

pub(super) const FAULTS: &[Fault] = &[TWO_PAIRS, TWO_FIREWALLS];

/// The sender's counters alone would blame its own firewall for both.
const TWO_FIREWALLS: Fault = Fault {
    name: "output-drop-beside-input-drop",
    about: "a node's firewall drops VXLAN to one peer; another peer's drops it on arrival",
    inject: |cluster| {
        let (a, b) = addresses(cluster, A, B)?;
        let port = Some(cluster.shape.port());
        let out = Drops { to: Some(b), udp_to: port, ..Drops::default() };
        filter::drop(&cluster.node(A)?.netns, Place::Output, &[out])?;
        let into = Drops { from: Some(a), udp_to: port, ..Drops::default() };
        filter::drop(&cluster.node(C)?.netns, Place::Input, &[into])
    },
    heal: |cluster| {
        filter::pass(&cluster.node(A)?.netns, Place::Output)?;
        filter::pass(&cluster.node(C)?.netns, Place::Input)
    },
    breaks: &[pods(A, B), pods(A, C)],
    spares: &[pods(B, A), pods(C, A), pods(B, C), nodes(A, B)],
    expected: &[
        says(A, Code::EncapsulationLost, B, OUTBOUND, ANYWHERE),
        says(A, Code::EncapsulationLost, C, OUTBOUND, ANYWHERE),
        hears_nothing(B, A),
        hears_nothing(C, A),
    ],
    unlike: &[Code::LocalOutputDrop],
    ..PLAIN
};

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
