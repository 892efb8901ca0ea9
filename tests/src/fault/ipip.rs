//! Faults of IPIP, in Calico's shape of it as a rule. They need a kernel that has IPIP:
//! where this machine's has not, `cargo xtask lab vm` boots one.

use overlaywatch_core::catalog::Code;

use super::expected::{BOTH, DECAPSULATION, INBOUND, OUTBOUND, WIRE, counts, says};
use super::firewall::{drop_all, filtered_in};
use super::underlay::{block_tunnel, middle_passes};
use super::{A, B, C, Fault, PLAIN, Shapes};
use crate::filter::{self, Place};
use crate::topology::Shape;
use crate::traffic::{nodes, pods};

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "underlay-proto4-blocked",
        about: "a firewall between two nodes drops IP protocol 4, both ways",
        shapes: Shapes::These(&[Shape::CalicoIpip, Shape::FlannelIpip, Shape::KubeRouter]),
        inject: |cluster| block_tunnel(cluster, true),
        heal: middle_passes,
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
        inject: |cluster| block_tunnel(cluster, false),
        heal: middle_passes,
        breaks: &[pods(A, B)],
        spares: &[pods(B, A), nodes(A, B)],
        expected: &[
            says(A, Code::EncapsulationLost, B, OUTBOUND, WIRE),
            says(B, Code::EncapsulationLost, A, INBOUND, WIRE),
        ],
        ..IN_IPIP
    },
    Fault {
        name: "remote-input-drop-proto4",
        about: "a node's firewall drops IP protocol 4 in its input",
        inject: |cluster| drop_all(cluster, B, Place::Input),
        heal: |cluster| filter::pass(&cluster.node(B)?.netns, Place::Input),
        breaks: &[pods(A, B), pods(C, B)],
        spares: &[pods(B, A), nodes(A, B), pods(A, C)],
        expected: &[
            says(A, Code::UnexplainedLoss, B, OUTBOUND, DECAPSULATION),
            says(C, Code::UnexplainedLoss, B, OUTBOUND, DECAPSULATION),
            filtered_in(B).telling(&["hook input", "ip protocol ipencap", "NETFILTER_DROP"]),
        ],
        counted: &[counts(B, A, INBOUND, DECAPSULATION), counts(B, C, INBOUND, DECAPSULATION)],
        unlike: &[Code::EncapsulationLost, Code::EncapsulationRefused],
        ..IN_IPIP
    },
];

/// In Calico's IPIP alone.
pub(super) const IN_IPIP: Fault = Fault { shapes: Shapes::Only(Shape::CalicoIpip), ..PLAIN };
