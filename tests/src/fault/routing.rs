//! Faults of a node's policy routing, of what other programs do to its routes,
//! and conditions that look like them.

use std::time::Duration;

use anyhow::Result;
use overlaywatch_core::catalog::Code;
use overlaywatch_core::ladder::{Hop, Segment};

use super::expected::{
    BOTH, DELIVERY, INBOUND, LOCAL_STACK, OUTBOUND, Subject, WHOLE_WAY, counts, may_speak, misses,
    says, says_itself,
};
use super::quiet::watch;
use super::{A, B, C, D, Fault, HARD, LIVE, Limits, PLAIN, Shapes, ip};
use crate::topology::{Cluster, GATEWAY, Shape};
use crate::traffic::{Path, nodes, pods};

/// An address that no packet gets as its source.
const NO_SOURCE: &str = "169.254.250.250/32";
const FROM_A_TO_B: &[Path] = &[pods(A, B)];
const OTHERS: &[Path] = &[pods(B, A), pods(A, C), pods(C, B), nodes(A, B)];

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "policy-rule-diverts",
        about: "a policy rule for unmarked packets sends a peer's pods to a table that leads past the tunnel",
        shapes: Shapes::Each,
        inject: |cluster| {
            let network = cluster.shape.pod_network(cluster.node(B)?);
            ip(cluster, A, &format!("route add default via {GATEWAY} dev eth0 table 100"))?;
            ip(cluster, A, &format!("rule add pref 100 fwmark 0/0x51820 to {network} lookup 100"))
        },
        heal: |cluster| {
            ip(cluster, A, "rule del pref 100")?;
            ip(cluster, A, "route flush table 100")
        },
        breaks: FROM_A_TO_B,
        spares: OTHERS,
        expected: &[
            says(A, Code::PolicyRuleDiverts, B, OUTBOUND, LOCAL_STACK).telling(&[
                "policy rule 100:",
                "lookup 100",
                "to eth0",
            ]),
            misses(B, A, LOCAL_STACK),
        ],
        unlike: &[Code::RouteMissing, Code::RouteBypassesTunnel, Code::RouteBlackhole],
        ..PLAIN
    },
    Fault {
        name: "policy-table-blackhole",
        about: "a policy rule for what comes from pods names a table that swallows a peer's pods",
        shapes: Shapes::Each,
        inject: |cluster| {
            let (a, b) = (cluster.node(A)?, cluster.node(B)?);
            let (own, network) = (cluster.shape.pod_network(a), cluster.shape.pod_network(b));
            ip(cluster, A, &format!("route add blackhole {network} table 100"))?;
            ip(cluster, A, &format!("rule add pref 100 from {own} lookup 100"))
        },
        heal: |cluster| {
            ip(cluster, A, "rule del pref 100")?;
            ip(cluster, A, "route flush table 100")
        },
        breaks: FROM_A_TO_B,
        spares: OTHERS,
        expected: &[
            says(A, Code::RouteBlackhole, B, OUTBOUND, LOCAL_STACK).telling(&[
                "policy rule 100:",
                "lookup 100",
                "blackhole",
            ]),
            misses(B, A, LOCAL_STACK),
        ],
        unlike: &[Code::RouteMissing, Code::PolicyRuleDiverts],
        ..PLAIN
    },
    Fault {
        name: "leftover-route",
        about: "another plugin's tunnel and its route to half of a peer's pods are left on one node",
        shapes: Shapes::Each,
        inject: |cluster| {
            let (device, lines) = other_tunnel(cluster)?;
            let half = cluster.shape.pod_network_half(cluster.node(B)?);
            cluster.node(A)?.netns.ip(&format!("{lines}route add {half} dev {device}\n"))
        },
        heal: |cluster| {
            let (device, _) = other_tunnel(cluster)?;
            ip(cluster, A, &format!("link del {device}"))
        },
        breaks: FROM_A_TO_B,
        spares: OTHERS,
        expected: &[
            says(A, Code::LeftoverRoute, B, OUTBOUND, LOCAL_STACK),
            misses(B, A, LOCAL_STACK),
        ],
        unlike: &[Code::RouteBypassesTunnel, Code::VniMismatch, Code::VxlanPortMismatch],
        ..PLAIN
    },
    Fault {
        name: "tunnel-address-missing",
        about: "one node's tunnel device lost its address",
        shapes: Shapes::Each,
        incident: Some(2),
        inject: |cluster| {
            let (overlay, device) = (cluster.node(A)?.overlay(), cluster.shape.device());
            // Without any address the device would lose its routes as well.
            ip(cluster, A, &format!("addr add {NO_SOURCE} dev {device} scope host"))?;
            ip(cluster, A, &format!("addr del {overlay}/32 dev {device}"))
        },
        heal: |cluster| {
            let (overlay, device) = (cluster.node(A)?.overlay(), cluster.shape.device());
            ip(cluster, A, &format!("addr add {overlay}/32 dev {device}"))?;
            ip(cluster, A, &format!("addr del {NO_SOURCE} dev {device}"))
        },
        spares: &[pods(A, B), pods(B, A), pods(B, C), nodes(A, B)],
        expected: &[
            says(A, Code::HostSourceWithoutTunnelAddress, B, INBOUND, DELIVERY)
                .telling(&["has no address", "from 10.0.0.11"]),
            says(A, Code::HostSourceWithoutTunnelAddress, C, INBOUND, DELIVERY),
            says(B, Code::UnexplainedLoss, A, OUTBOUND, DELIVERY),
            says(C, Code::UnexplainedLoss, A, OUTBOUND, DELIVERY),
        ],
        // What A itself sends is answered beside the tunnel: it loses nothing.
        counted: &[may_speak(A, B), may_speak(A, C)],
        unlike: &[Code::RouteMissing],
        ..PLAIN
    },
    Fault {
        name: "tunnel-address-of-another",
        about: "one node's tunnel device has the address of another's",
        shapes: Shapes::Each,
        inject: |cluster| {
            let (a, b) = (cluster.node(A)?.overlay(), cluster.node(B)?.overlay());
            let device = cluster.shape.device();
            // Without any address the device would lose its routes as well.
            ip(cluster, B, &format!("addr add {a}/32 dev {device}\naddr del {b}/32 dev {device}"))
        },
        heal: |cluster| {
            let (a, b) = (cluster.node(A)?.overlay(), cluster.node(B)?.overlay());
            let device = cluster.shape.device();
            ip(cluster, B, &format!("addr add {b}/32 dev {device}\naddr del {a}/32 dev {device}"))
        },
        spares: &[pods(A, B), pods(B, A), pods(B, C), nodes(A, B)],
        expected: &[
            says_itself(B, Code::TunnelAddressDuplicate, Subject::Tunnel).telling(&[
                "10.42.1.0 is the tunnel address of this node and 10.0.0.11",
                "routes lead it to 10.0.0.11",
            ]),
            says(A, Code::TunnelAddressDuplicate, B, BOTH, WHOLE_WAY)
                .telling(&["of this node and 10.0.0.12"]),
            says(C, Code::TunnelAddressDuplicate, B, BOTH, PAST_THE_WIRE)
                .telling(&["of 10.0.0.11 and 10.0.0.12"]),
        ],
        // Who answers whom is what nobody can tell any more.
        counted: &[may_speak(A, B), may_speak(B, A), may_speak(B, C), may_speak(C, B)],
        unlike: &[Code::RouteMissing, Code::HostSourceWithoutTunnelAddress],
        // What a node says may be of one that has just left.
        limits: Limits { detect: Duration::from_secs(20), ..HARD },
        ..PLAIN
    },
    Fault {
        name: "tunnel-address-of-a-service",
        about: "all nodes' tunnel devices have the address of a service beside their own",
        shapes: Shapes::Each,
        inject: |cluster| of_service(cluster, "add"),
        heal: |cluster| of_service(cluster, "del"),
        spares: &[pods(A, B), pods(B, A), pods(B, C), nodes(A, B)],
        unlike: &[Code::TunnelAddressDuplicate],
        limits: watch(20),
        ..PLAIN
    },
    Fault {
        name: "routes-vanished",
        about: "what manages one node's links removes all routes into the tunnel",
        shapes: Shapes::Each,
        nodes: 4,
        inject: |cluster| ip(cluster, A, &format!("route flush dev {}", cluster.shape.device())),
        heal: |cluster| cluster.program(A),
        breaks: &[pods(A, B), pods(A, C), pods(A, D)],
        spares: &[pods(B, A), pods(C, B), nodes(A, B)],
        expected: &[
            says_itself(A, Code::RoutesVanished, Subject::Tunnel)
                .going(OUTBOUND, LOCAL_STACK)
                .telling(&["3 routes into"]),
            misses(B, A, LOCAL_STACK),
            misses(C, A, LOCAL_STACK),
            misses(D, A, LOCAL_STACK),
        ],
        counted: &[
            counts(A, B, OUTBOUND, LOCAL_STACK),
            counts(A, C, OUTBOUND, LOCAL_STACK),
            counts(A, D, OUTBOUND, LOCAL_STACK),
        ],
        unlike: &[Code::TunnelDown, Code::TunnelMissing],
        ..PLAIN
    },
    Fault {
        name: "tunnel-forwarding-off",
        about: "one node's kernel forwards nothing that comes out of the tunnel device",
        shapes: Shapes::Each,
        inject: |cluster| forward_from_tunnel(cluster, "0"),
        heal: |cluster| forward_from_tunnel(cluster, "1"),
        breaks: &[pods(A, B), pods(C, B)],
        spares: &[pods(B, A), pods(A, C), pods(C, A), nodes(A, B)],
        expected: &[says_itself(B, Code::ForwardingOff, Subject::Tunnel)],
        counted: &[counts(B, A, INBOUND, DELIVERY), counts(B, C, INBOUND, DELIVERY)],
        unlike: &[Code::RpFilterStrict],
        limits: LIVE,
        ..PLAIN
    },
    Fault {
        name: "policy-routing-of-others",
        about: "rules of others, a local table that is asked later, a table of the plugin's own",
        shapes: Shapes::Each,
        inject: |cluster| {
            let (b, device) = (cluster.node(B)?, cluster.shape.device());
            let (network, gateway) = (cluster.shape.pod_network(b), cluster.shape.gateway(b));
            cluster.node(A)?.netns.ip(&format!(
                "route add blackhole default table 90\n\
                 rule add pref 90 from 192.0.2.0/24 lookup 90\n\
                 rule add pref 91 fwmark 0x4000/0x4000 lookup 90\n\
                 rule add pref 100 lookup local\n\
                 rule del pref 0\n\
                 route add {network} via {gateway} dev {device} onlink table 200\n\
                 rule add pref 110 to {network} lookup 200\n\
                 route add blackhole 198.51.100.0/24\n"
            ))
        },
        heal: |cluster| {
            cluster.node(A)?.netns.ip("rule add pref 0 lookup local\n\
                 rule del pref 100\n\
                 rule del pref 90\n\
                 rule del pref 91\n\
                 rule del pref 110\n\
                 route flush table 90\n\
                 route flush table 200\n\
                 route del blackhole 198.51.100.0/24\n")
        },
        spares: &[pods(A, B), pods(B, A), pods(A, C)],
        unlike: &[
            Code::PolicyRuleDiverts,
            Code::RouteBlackhole,
            Code::RouteMissing,
            Code::LeftoverRoute,
            Code::HostSourceWithoutTunnelAddress,
            Code::RoutesVanished,
            Code::RpFilterStrict,
            Code::ModuleMissing,
        ],
        limits: watch(15),
        ..PLAIN
    },
    Fault {
        name: "routes-made-again",
        about: "a plugin's agent restarts: its routes go and come back, one with a source of its own",
        shapes: Shapes::Each,
        nodes: 4,
        inject: |cluster| {
            ip(cluster, A, &format!("route flush dev {}", cluster.shape.device()))?;
            cluster.program(A)?;
            let (a, b, device) = (cluster.node(A)?, cluster.node(B)?, cluster.shape.device());
            let (network, gateway) = (cluster.shape.pod_network(b), cluster.shape.gateway(b));
            let source = a.overlay();
            let route = format!("{network} via {gateway} dev {device} onlink src {source}");
            ip(cluster, A, &format!("route replace {route}"))
        },
        heal: |cluster| cluster.program(A),
        // Between the two moments a packet may be lost.
        spares: &[pods(B, A), pods(C, B)],
        unlike: &[Code::RoutesVanished, Code::HostSourceWithoutTunnelAddress, Code::RouteMissing],
        limits: watch(15),
        ..PLAIN
    },
    Fault {
        name: "rp-filter-strict-everywhere",
        about: "one node's reverse path filters are strict, and all answers go the way they came",
        shapes: Shapes::Each,
        inject: |cluster| filter_reverse_paths(cluster, "1"),
        heal: |cluster| filter_reverse_paths(cluster, "0"),
        spares: &[pods(A, B), pods(B, A), pods(A, C), nodes(A, B)],
        unlike: &[Code::RpFilterStrict],
        limits: watch(15),
        ..PLAIN
    },
];

/// Behind the sender's NIC: where the answers to a node go is another one's.
const PAST_THE_WIRE: &[Segment] = &[Segment { from: Hop::LeftNic, to: Hop::Delivered }];

/// As LVS's tunnelling has it on each of its servers.
fn of_service(cluster: &Cluster, verb: &str) -> Result<()> {
    let line = format!("addr {verb} 192.0.2.80/32 dev {}", cluster.shape.device());
    (0..cluster.nodes.len()).try_for_each(|node| ip(cluster, node, &line))
}

/// A tunnel device of the plugin that the cluster does not use, and what makes it.
fn other_tunnel(cluster: &Cluster) -> Result<(&'static str, String)> {
    let other = match cluster.shape {
        Shape::Flannel => Shape::CalicoVxlan,
        _ => Shape::Flannel,
    };
    let (device, vni, port) = (other.device(), other.vni(), other.port());
    let local = cluster.node(A)?.underlay();
    let lines = format!(
        "link add {device} type vxlan id {vni} local {local} dev eth0 dstport {port} nolearning\n\
         link set {device} up\n"
    );
    Ok((device, lines))
}

fn forward_from_tunnel(cluster: &Cluster, value: &str) -> Result<()> {
    // The name may have a dot, which is no separator in a path.
    let switch = format!("ipv4/conf/{}/forwarding", cluster.shape.device());
    cluster.node(B)?.netns.set(&switch, value)
}

fn filter_reverse_paths(cluster: &Cluster, value: &str) -> Result<()> {
    cluster.node(A)?.netns.set("ipv4/conf/all/rp_filter", value)
}
