//! Shapes that part or mix encapsulations: each healthy, and each with what breaks
//! one part of it and no other.

use std::time::Duration;

use anyhow::Result;
use overlaywatch_core::catalog::Code;

use super::expected::{
    BOTH, DECAPSULATION, Expected, LOCAL_STACK, NO_DIRECTION, NO_HOP, OUTBOUND, Subject, WIRE,
    may_speak, says, says_itself,
};
use super::quiet::watch;
use super::underlay::{block_pair, middle_passes};
use super::{A, B, C, Fault, PLAIN, Shapes, addresses, ip};
use crate::filter::{self, Drops, Place};
use crate::interrupt;
use crate::topology::{Cluster, Shape};
use crate::traffic::{moved_pods, nodes, pods};

/// A and B in one subnet, C in another.
const ACROSS: Shapes = Shapes::Only(Shape::CalicoCrossSubnet);
const MIGRATION: Shapes = Shapes::Only(Shape::CalicoMigration);
const EACH_PEER: Shapes = Shapes::Only(Shape::KubeRouter);

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "healthy-mixed",
        about: "nothing happens where encapsulations are parted or mixed",
        shapes: Shapes::These(&[
            Shape::CalicoCrossSubnet,
            Shape::CalicoMigration,
            Shape::FlannelIpip,
            Shape::KubeRouter,
        ]),
        ..HEALTHY
    },
    Fault {
        name: "healthy-mixed-unlisted",
        about: "the same, and nodes know of peers by the kernel alone",
        shapes: Shapes::These(&[Shape::CalicoMigration, Shape::FlannelIpip, Shape::KubeRouter]),
        listed: false,
        ..HEALTHY
    },
    Fault {
        name: "cross-subnet-proto4-blocked",
        about: "the router between two subnets drops IP protocol 4",
        shapes: ACROSS,
        inject: |cluster| filter::drop(&cluster.switch, Place::Router, &[Drops::ipip()]),
        heal: |cluster| filter::pass(&cluster.switch, Place::Router),
        breaks: &[pods(A, C), pods(C, A), pods(B, C), pods(C, B)],
        spares: &[pods(A, B), pods(B, A), nodes(A, C)],
        expected: &[lost(A, C), lost(C, A), lost(B, C), lost(C, B)],
        unlike: &[Code::NodeIsolated, Code::UnexplainedLoss, Code::RemoteTunnelDown],
        ..PLAIN
    },
    Fault {
        name: "cross-subnet-direct-leg-dead",
        about: "the switch drops everything between two nodes of one subnet",
        shapes: ACROSS,
        inject: |cluster| block_pair(cluster),
        heal: middle_passes,
        breaks: &[pods(A, B), pods(B, A), nodes(A, B)],
        spares: &[pods(A, C), pods(C, B)],
        expected: &[
            says(A, Code::PeerUnreachable, B, NO_DIRECTION, NO_HOP),
            says(B, Code::PeerUnreachable, A, NO_DIRECTION, NO_HOP),
        ],
        unlike: &[Code::EncapsulationLost, Code::NodeIsolated],
        ..PLAIN
    },
    Fault {
        name: "cross-subnet-direct-route-missing",
        about: "one node lost its plain route to another's pods in the same subnet",
        shapes: ACROSS,
        inject: |cluster| {
            let network = cluster.shape.pod_network(cluster.node(B)?);
            ip(cluster, A, &format!("route del {network}"))
        },
        heal: |cluster| cluster.program(A),
        breaks: &[pods(A, B)],
        spares: &[pods(B, A), pods(A, C), nodes(A, B)],
        expected: &[says(A, Code::RouteMissing, B, OUTBOUND, LOCAL_STACK)],
        unlike: &[Code::RouteBypassesTunnel],
        ..PLAIN
    },
    Fault {
        name: "peer-tunnel-down",
        about: "one node's tunnel to another is switched off, of several to one peer each; its \
                routes go with it",
        shapes: EACH_PEER,
        inject: |cluster| ip(cluster, A, &format!("link set {} down", cluster.shape.device())),
        heal: |cluster| {
            ip(cluster, A, &format!("link set {} up", cluster.shape.device()))?;
            cluster.program(A)
        },
        breaks: &[pods(A, B), pods(B, A)],
        spares: &[pods(A, C), pods(C, A), pods(B, C), nodes(A, B)],
        expected: &[
            says_itself(A, Code::TunnelDown, Subject::Tunnel),
            says(B, Code::EncapsulationRefused, A, OUTBOUND, DECAPSULATION),
        ],
        counted: &[may_speak(A, B)],
        unlike: &[Code::RemoteTunnelDown, Code::TunnelMissing],
        ..PLAIN
    },
    Fault {
        name: "migration-vxlan-blocked",
        about: "a firewall between two nodes drops the VXLAN that pods move to, and passes the \
                IPIP that they come from",
        shapes: MIGRATION,
        inject: |cluster| {
            let vxlan = Drops::vxlan(cluster.shape);
            block(cluster, &vxlan)
        },
        heal: middle_passes,
        breaks: &[moved_pods(A, B), moved_pods(B, A)],
        spares: &[pods(A, B), pods(B, A), nodes(A, B), moved_pods(A, C)],
        expected: &[lost(A, B).telling(&["vxlan/4789"]), lost(B, A).telling(&["vxlan/4789"])],
        unlike: &[Code::VxlanPortMismatch],
        ..PLAIN
    },
    Fault {
        name: "migration-proto4-blocked",
        about: "a firewall between two nodes drops the IPIP that pods come from, and passes the \
                VXLAN that they move to",
        shapes: MIGRATION,
        inject: |cluster| block(cluster, &Drops::ipip()),
        heal: middle_passes,
        breaks: &[pods(A, B), pods(B, A)],
        spares: &[moved_pods(A, B), moved_pods(B, A), nodes(A, B), pods(A, C)],
        expected: &[lost(A, B).telling(&["ipip"]), lost(B, A).telling(&["ipip"])],
        ..PLAIN
    },
    Fault {
        name: "migration-node-by-node",
        about: "a pool changes from IPIP to VXLAN, node by node, so that two nodes send to each \
                other in different ways meanwhile",
        shapes: MIGRATION,
        inject: |cluster| {
            for node in 0..cluster.nodes.len() {
                cluster.move_on(node)?;
                interrupt::sleep(Duration::from_secs(8))?;
            }
            Ok(())
        },
        heal: |cluster| (0..cluster.nodes.len()).try_for_each(|node| cluster.program(node)),
        spares: &[pods(A, B), pods(B, A), pods(A, C), moved_pods(A, B)],
        unlike: &[
            Code::RouteMissing,
            Code::RouteBypassesTunnel,
            Code::RoutesVanished,
            Code::LeftoverRoute,
            Code::EncapsulationLost,
        ],
        limits: watch(15),
        ..PLAIN
    },
];

const HEALTHY: Fault = Fault {
    spares: &[pods(A, B), pods(B, C), pods(C, A), nodes(A, B), nodes(B, C)],
    unlike: &[
        Code::RouteMissing,
        Code::RouteBypassesTunnel,
        Code::EncapsulationLost,
        Code::TunnelMtuTooLarge,
        Code::CniLeftover,
        Code::HostSourceWithoutTunnelAddress,
    ],
    limits: watch(30),
    ..PLAIN
};

/// A pair's encapsulation vanishes between the NICs, both ways.
const fn lost(node: usize, peer: usize) -> Expected {
    says(node, Code::EncapsulationLost, peer, BOTH, WIRE)
}

/// Drops that between A and B, both ways.
fn block(cluster: &Cluster, what: &Drops) -> Result<()> {
    let (a, b) = addresses(cluster, A, B)?;
    let between = |from, to| Drops { from: Some(from), to: Some(to), ..what.clone() };
    filter::drop(&cluster.switch, Place::Middle, &[between(a, b), between(b, a)])
}
