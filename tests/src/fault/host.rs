//! Faults of a node's own switches under /proc/sys.

use anyhow::Result;
use overlaywatch_core::catalog::Code;

use super::expected::{
    DELIVERY, INBOUND, LOCAL_STACK, OUTBOUND, Subject, counts, says, says_itself,
};
use super::{A, B, C, Fault, LIVE, PLAIN, Shapes, ip};
use crate::topology::Cluster;
use crate::traffic::{nodes, pods};

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "forwarding-off",
        about: "one node's kernel forwards no packets any more",
        shapes: Shapes::Each,
        inject: |cluster| cluster.node(B)?.netns.set("ipv4/ip_forward", "0"),
        heal: |cluster| cluster.node(B)?.netns.set("ipv4/ip_forward", "1"),
        breaks: &[pods(A, B), pods(B, C)],
        spares: &[pods(A, C), pods(C, A), nodes(A, B)],
        expected: &[says_itself(B, Code::ForwardingOff, Subject::Node)],
        counted: &[counts(B, A, INBOUND, DELIVERY), counts(B, C, OUTBOUND, LOCAL_STACK)],
        unlike: &[Code::RouteMissing],
        limits: LIVE,
        ..PLAIN
    },
    Fault {
        name: "rp-filter-strict",
        about: "one node sends a peer's pods their answers past the tunnel, and its strict \
                reverse path filter drops what they send through it",
        shapes: Shapes::Each,
        inject: |cluster| {
            route_past_tunnel(cluster, "add")?;
            filter_reverse_paths(cluster, "1")
        },
        heal: |cluster| {
            filter_reverse_paths(cluster, "0")?;
            route_past_tunnel(cluster, "del")
        },
        breaks: &[pods(A, B)],
        spares: &[pods(B, A), pods(C, B), pods(B, C), nodes(A, B)],
        expected: &[
            says(A, Code::UnexplainedLoss, B, OUTBOUND, DELIVERY),
            says_itself(B, Code::RpFilterStrict, Subject::Tunnel)
                .going(INBOUND, DELIVERY)
                .telling(&["rp_filter = 1"]),
        ],
        counted: &[counts(B, A, INBOUND, DELIVERY)],
        // A route through the peer itself is one that a CNI plugin may choose.
        unlike: &[Code::RouteBypassesTunnel, Code::StaleVtepMac],
        ..PLAIN
    },
];

/// B's route to the first half of A's pods, tunnel address included, leads
/// straight to A.
fn route_past_tunnel(cluster: &Cluster, verb: &str) -> Result<()> {
    let a = cluster.node(A)?;
    let half = cluster.shape.pod_network_half(a);
    ip(cluster, B, &format!("route {verb} {half} via {} dev eth0", a.underlay()))
}

/// The stricter of a device's own switch and that of all devices is in force.
fn filter_reverse_paths(cluster: &Cluster, value: &str) -> Result<()> {
    let netns = &cluster.node(B)?.netns;
    netns.set("ipv4/conf/all/rp_filter", value)?;
    // The name has a dot, which is no separator in a path.
    netns.set(&format!("ipv4/conf/{}/rp_filter", cluster.shape.device()), value)
}
