//! Faults of the tables that lead into a tunnel: routes, neighbours,
//! forwarding entries. All of them break what A sends to B.

use anyhow::Result;
use overlaywatch_core::catalog::Code;
use overlaywatch_core::ladder::Segment;

use super::expected::{
    ENCAPSULATION, Expected, INBOUND, LOCAL_STACK, OUTBOUND, WIRE, misses, says,
};
use super::{A, B, C, Fault, PLAIN, Shapes, ip};
use crate::topology::{Cluster, GATEWAY};
use crate::traffic::{Path, nodes, pods};

const FROM_A_TO_B: &[Path] = &[pods(A, B)];
const OTHERS: &[Path] = &[pods(B, A), pods(A, C), pods(C, B), nodes(A, B)];

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "fdb-missing",
        about: "one node lost the forwarding entry of a peer's VTEP",
        inject: lose_forwarding_entry,
        heal: program_a,
        breaks: FROM_A_TO_B,
        spares: OTHERS,
        expected: &cannot_send(Code::FdbMissing, ENCAPSULATION),
        unlike: &[Code::StaleVtepMac, Code::VtepNeighbourMissing, Code::FdbMisdirected],
        ..PLAIN
    },
    Fault {
        name: "fdb-misdirected",
        about: "one node's forwarding entry of a peer's VTEP leads to a third node",
        inject: |cluster| cluster.misdirect(A, B, C),
        heal: program_a,
        breaks: FROM_A_TO_B,
        spares: OTHERS,
        expected: &[
            says(A, Code::FdbMisdirected, B, OUTBOUND, WIRE),
            says(B, Code::EncapsulationLost, A, INBOUND, WIRE),
        ],
        unlike: &[Code::FdbMissing, Code::StaleVtepMac],
        ..PLAIN
    },
    Fault {
        name: "vtep-neigh-missing",
        about: "one node lost the neighbour entry of a peer's VTEP",
        inject: |cluster| {
            let (device, overlay) = (cluster.shape.device(), cluster.node(B)?.overlay());
            ip(cluster, A, &format!("neigh del {overlay} dev {device}"))
        },
        heal: program_a,
        breaks: FROM_A_TO_B,
        spares: OTHERS,
        expected: &cannot_send(Code::VtepNeighbourMissing, LOCAL_STACK),
        unlike: &[Code::FdbMissing, Code::NeighbourTableOverflow],
        ..PLAIN
    },
    Fault {
        name: "route-missing-to-one-peer",
        about: "one node lost the route to a peer's pods",
        shapes: Shapes::Each,
        inject: |cluster| {
            let network = cluster.shape.pod_network(cluster.node(B)?);
            ip(cluster, A, &format!("route del {network}"))
        },
        heal: program_a,
        breaks: FROM_A_TO_B,
        spares: OTHERS,
        expected: &cannot_send(Code::RouteMissing, LOCAL_STACK),
        unlike: &[Code::RouteBypassesTunnel, Code::RouteBlackhole],
        ..PLAIN
    },
    Fault {
        name: "blackhole-shadows-block",
        about: "a leftover blackhole covers half of a peer's pods on one node",
        shapes: Shapes::Each,
        inject: |cluster| {
            let half = cluster.shape.pod_network_half(cluster.node(B)?);
            ip(cluster, A, &format!("route add blackhole {half} proto 80"))
        },
        heal: |cluster| {
            let half = cluster.shape.pod_network_half(cluster.node(B)?);
            ip(cluster, A, &format!("route del blackhole {half} proto 80"))
        },
        breaks: FROM_A_TO_B,
        spares: OTHERS,
        expected: &cannot_send(Code::RouteBlackhole, LOCAL_STACK),
        unlike: &[Code::RouteMissing],
        ..PLAIN
    },
    Fault {
        name: "route-bypasses-tunnel",
        about: "a leftover route leads half of a peer's pods past the tunnel on one node",
        shapes: Shapes::Each,
        inject: |cluster| {
            let half = cluster.shape.pod_network_half(cluster.node(B)?);
            ip(cluster, A, &format!("route add {half} via {GATEWAY} dev eth0"))
        },
        heal: |cluster| {
            let half = cluster.shape.pod_network_half(cluster.node(B)?);
            ip(cluster, A, &format!("route del {half} via {GATEWAY} dev eth0"))
        },
        breaks: FROM_A_TO_B,
        spares: OTHERS,
        expected: &cannot_send(Code::RouteBypassesTunnel, LOCAL_STACK),
        unlike: &[Code::RouteBlackhole, Code::RouteMissing],
        ..PLAIN
    },
];

/// A's tables say why; B only learns that A's answers do not arrive, and where
/// they ended.
const fn cannot_send(code: Code, hops: &'static [Segment]) -> [Expected; 2] {
    [says(A, code, B, OUTBOUND, hops), misses(B, A, hops)]
}

fn lose_forwarding_entry(cluster: &mut Cluster) -> Result<()> {
    cluster.lose_forwarding_entry(A, B)
}

fn program_a(cluster: &mut Cluster) -> Result<()> {
    cluster.program(A)
}
