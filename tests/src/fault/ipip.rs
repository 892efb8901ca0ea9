//! Faults of IPIP, in Calico's shape of it. They need a kernel that has IPIP:
//! where this machine's has not, `cargo xtask lab vm` boots one.

use anyhow::Result;
use overlaywatch_core::catalog::Code;

use super::expected::{BOTH, INBOUND, OUTBOUND, WIRE, says};
use super::{A, B, C, Fault, PLAIN, addresses};
use crate::filter::{self, Drops, Place};
use crate::topology::{Cluster, Shape};
use crate::traffic::{nodes, pods};

/// IPPROTO_IPIP.
const IPIP: u8 = 4;

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "underlay-proto4-blocked",
        about: "a firewall between two nodes drops IP protocol 4, both ways",
        inject: |cluster| block(cluster, true),
        heal: |cluster| filter::pass(&cluster.switch, Place::Middle),
        breaks: &[pods(A, B), pods(B, A)],
        spares: &[nodes(A, B), nodes(B, A), pods(A, C), pods(C, B)],
        expected: &[
            says(A, Code::EncapsulationLost, B, BOTH, WIRE),
            says(B, Code::EncapsulationLost, A, BOTH, WIRE),
        ],
        unlike: &[Code::LocalOutputDrop, Code::RemoteTunnelDown, Code::UnexplainedLoss],
        ..IN_IPIP
    },
    Fault {
        name: "underlay-proto4-blocked-one-way",
        about: "a firewall between two nodes drops IP protocol 4, one way",
        inject: |cluster| block(cluster, false),
        heal: |cluster| filter::pass(&cluster.switch, Place::Middle),
        breaks: &[pods(A, B)],
        spares: &[pods(B, A), nodes(A, B)],
        expected: &[
            says(A, Code::EncapsulationLost, B, OUTBOUND, WIRE),
            says(B, Code::EncapsulationLost, A, INBOUND, WIRE),
        ],
        ..IN_IPIP
    },
];

const IN_IPIP: Fault = Fault { shape: Some(Shape::CalicoIpip), ..PLAIN };

/// Drops IPIP from A to B, and back.
fn block(cluster: &Cluster, both_ways: bool) -> Result<()> {
    let (a, b) = addresses(cluster, A, B)?;
    let encapsulated = |from, to| Drops {
        from: Some(from),
        to: Some(to),
        protocol: Some(IPIP),
        ..Drops::default()
    };
    let mut drops = vec![encapsulated(a, b)];
    if both_ways {
        drops.push(encapsulated(b, a));
    }
    filter::drop(&cluster.switch, Place::Middle, &drops)
}
