//! Faults between the nodes: what a firewall in the middle, a switch or a cable
//! does.

use std::time::Duration;

use anyhow::Result;
use overlaywatch_core::catalog::Code;

use super::expected::{
    BOTH, EITHER, INBOUND, OUTBOUND, SENDING, Subject, WIRE, cannot_reach, may_speak,
    may_speak_of_itself, says, says_itself,
};
use super::{A, B, C, Fault, GRAY, HARD, Limits, Loss, PLAIN, Shapes, addresses, ip};
use crate::filter::{self, Drops, Place};
use crate::interrupt;
use crate::topology::Cluster;
use crate::traffic::{full_pods, nodes, pods};

/// A path that is smaller than both ends believe: one VLAN tag and one more
/// encapsulation by the provider, say. Bytes.
const PATH_MTU: u16 = 1450;

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "underlay-udp-port-blocked",
        about: "a firewall between two nodes drops the VXLAN port, both ways",
        incident: Some(1),
        inject: |cluster| block_tunnel(cluster, true),
        heal: middle_passes,
        breaks: &[pods(A, B), pods(B, A)],
        spares: &[nodes(A, B), nodes(B, A), pods(A, C), pods(C, B)],
        expected: &[
            says(A, Code::EncapsulationLost, B, BOTH, WIRE),
            says(B, Code::EncapsulationLost, A, BOTH, WIRE),
        ],
        unlike: &[Code::LocalOutputDrop, Code::RemoteTunnelDown, Code::UnexplainedLoss],
        ..PLAIN
    },
    Fault {
        name: "underlay-udp-port-blocked-one-way",
        about: "a firewall between two nodes drops the VXLAN port, one way",
        inject: |cluster| block_tunnel(cluster, false),
        heal: middle_passes,
        breaks: &[pods(A, B)],
        spares: &[pods(B, A), nodes(A, B)],
        expected: &[
            says(A, Code::EncapsulationLost, B, OUTBOUND, WIRE),
            says(B, Code::EncapsulationLost, A, INBOUND, WIRE),
        ],
        ..PLAIN
    },
    Fault {
        name: "mid-path-mtu",
        about: "the path between two nodes silently drops packets over 1450 bytes",
        shapes: Shapes::Each,
        inject: |cluster| narrow(cluster, true),
        heal: middle_passes,
        breaks: &[full_pods(A, B), full_pods(B, A)],
        spares: &[pods(A, B), pods(B, A), full_pods(A, C)],
        expected: &[
            says(A, Code::MtuBlackhole, B, BOTH, WIRE),
            says(B, Code::MtuBlackhole, A, BOTH, WIRE),
        ],
        unlike: &[Code::TunnelMtuTooLarge, Code::EncapsulationLost],
        ..PLAIN
    },
    Fault {
        name: "mid-path-mtu-one-way",
        about: "the path between two nodes silently drops packets over 1450 bytes, one way",
        shapes: Shapes::Each,
        inject: |cluster| narrow(cluster, false),
        heal: middle_passes,
        breaks: &[full_pods(A, B)],
        spares: &[pods(A, B), full_pods(B, A), full_pods(A, C)],
        // B's full-sized probes pass, and so do A's replies, which are short.
        expected: &[says(A, Code::MtuBlackhole, B, OUTBOUND, WIRE)],
        ..PLAIN
    },
    Fault {
        name: "outer-fragments-dropped",
        about: "a node cuts long VXLAN packets in two, and the path drops fragments",
        inject: |cluster| {
            let (a, b) = addresses(cluster, A, B)?;
            let fragments =
                Drops { from: Some(a), to: Some(b), fragments: true, ..Drops::default() };
            filter::drop(&cluster.switch, Place::Middle, &[fragments])?;
            ip(cluster, A, &format!("route add {b}/32 dev eth0 mtu {PATH_MTU}"))
        },
        heal: |cluster| {
            let (_, b) = addresses(cluster, A, B)?;
            ip(cluster, A, &format!("route del {b}/32 dev eth0"))?;
            middle_passes(cluster)
        },
        breaks: &[full_pods(A, B)],
        spares: &[pods(A, B), full_pods(B, A), full_pods(A, C), nodes(A, B)],
        expected: &[says(A, Code::MtuBlackhole, B, OUTBOUND, WIRE)],
        unlike: &[Code::TunnelMtuTooLarge, Code::EncapsulationLost],
        ..PLAIN
    },
    Fault {
        name: "gray-loss",
        about: "the path between two nodes loses one packet in ten, both ways",
        shapes: Shapes::Each,
        inject: |cluster| {
            let (a, b) = addresses(cluster, A, B)?;
            let tenth = |from, to| Drops {
                from: Some(from),
                to: Some(to),
                percent: Some(10),
                ..Drops::default()
            };
            filter::drop(&cluster.switch, Place::Middle, &[tenth(a, b), tenth(b, a)])
        },
        heal: middle_passes,
        breaks: &[pods(A, B), pods(B, A), nodes(A, B)],
        loss: Loss::Partial,
        spares: &[pods(A, C), pods(C, B)],
        expected: &[
            says(A, Code::UnderlayLoss, B, EITHER, WIRE),
            says(B, Code::UnderlayLoss, A, EITHER, WIRE),
        ],
        unlike: &[Code::PeerUnreachable],
        limits: GRAY,
        ..PLAIN
    },
    Fault {
        name: "gray-loss-in-tunnel",
        about: "the path between two nodes loses one packet in ten of the tunnel, one way",
        shapes: Shapes::Each,
        inject: |cluster| {
            let (a, b) = addresses(cluster, A, B)?;
            let tenth = Drops {
                from: Some(a),
                to: Some(b),
                percent: Some(10),
                ..Drops::tunnelled(cluster.shape)
            };
            filter::drop(&cluster.switch, Place::Middle, &[tenth])
        },
        heal: middle_passes,
        breaks: &[pods(A, B)],
        loss: Loss::Partial,
        spares: &[nodes(A, B), pods(B, A)],
        expected: &[
            says(A, Code::OverlayLoss, B, OUTBOUND, WIRE),
            says(B, Code::OverlayLoss, A, INBOUND, WIRE),
        ],
        unlike: &[Code::UnderlayLoss],
        limits: GRAY,
        ..PLAIN
    },
    Fault {
        name: "underlay-dead",
        about: "the switch silently drops all of one node's traffic",
        shapes: Shapes::Each,
        inject: |cluster| {
            let port = Some(cluster.node(B)?.name.clone());
            let to = Drops { out_port: port.clone(), ..Drops::default() };
            let from = Drops { in_port: port, ..Drops::default() };
            filter::drop(&cluster.switch, Place::Middle, &[to, from])
        },
        heal: middle_passes,
        breaks: &[pods(A, B), pods(B, A), nodes(A, B), nodes(C, B)],
        spares: &[pods(A, C), nodes(A, C)],
        expected: &[
            cannot_reach(A, B),
            cannot_reach(C, B),
            says_itself(B, Code::NodeIsolated, Subject::Node),
        ],
        counted: &[may_speak(B, A), may_speak(B, C)],
        unlike: &[Code::UnderlayLinkDown, Code::AgentSilent],
        ..PLAIN
    },
    Fault {
        name: "underlay-pair-dead",
        about: "the switch silently drops everything between two nodes",
        shapes: Shapes::Each,
        inject: |cluster| block_pair(cluster),
        heal: middle_passes,
        breaks: &[pods(A, B), pods(B, A), nodes(A, B)],
        spares: &[pods(A, C), pods(C, B)],
        expected: &[cannot_reach(A, B), cannot_reach(B, A)],
        unlike: &[Code::NodeIsolated],
        ..PLAIN
    },
    Fault {
        name: "underlay-route-blackhole",
        about: "a blackhole route on one node covers the address of another",
        shapes: Shapes::Each,
        inject: |cluster| blackhole(cluster, "add"),
        heal: |cluster| blackhole(cluster, "del"),
        breaks: &[pods(A, B)],
        spares: &[pods(B, A), pods(A, C), pods(C, B)],
        expected: &[says(A, Code::PeerUnreachable, B, OUTBOUND, SENDING), cannot_reach(B, A)],
        unlike: &[Code::RouteBlackhole, Code::NodeIsolated],
        ..PLAIN
    },
    Fault {
        name: "switch-port-down",
        about: "one node's port on the switch is shut: its NIC loses carrier",
        shapes: Shapes::Each,
        inject: |cluster| set_port(cluster, B, "down"),
        heal: |cluster| set_port(cluster, B, "up"),
        breaks: &[pods(A, B), pods(B, A), nodes(A, B)],
        spares: &[pods(A, C)],
        expected: &[
            cannot_reach(A, B),
            cannot_reach(C, B),
            says_itself(B, Code::UnderlayLinkDown, Subject::Uplink),
        ],
        counted: &[may_speak(B, A), may_speak(B, C), may_speak_of_itself(B)],
        ..PLAIN
    },
    Fault {
        name: "node-powered-off",
        about: "one node is gone at once: agent, kernel and link",
        shapes: Shapes::Each,
        inject: |cluster| {
            set_port(cluster, B, "down")?;
            cluster.kill_agent(B)
        },
        heal: |cluster| {
            set_port(cluster, B, "up")?;
            cluster.start_agent(B)
        },
        breaks: &[pods(A, B), nodes(A, B)],
        spares: &[pods(A, C)],
        expected: &[cannot_reach(A, B), cannot_reach(C, B)],
        unlike: &[Code::PeerDeparted],
        ..PLAIN
    },
    Fault {
        name: "comes-and-goes",
        about: "the encapsulation is blocked between two nodes for 7 s of 14, twice, and for good",
        shapes: Shapes::Each,
        inject: |cluster| come_and_go(cluster, Duration::from_secs(7)),
        ..COMES_AND_GOES
    },
    Fault {
        name: "comes-and-goes-slow",
        about: "the encapsulation is blocked between two nodes for 20 s of 40, twice, and for good",
        shapes: Shapes::Each,
        inject: |cluster| come_and_go(cluster, Duration::from_secs(20)),
        ..COMES_AND_GOES
    },
];

const COMES_AND_GOES: Fault = Fault {
    heal: middle_passes,
    breaks: &[pods(A, B), pods(B, A)],
    loss: Loss::Partial,
    spares: &[nodes(A, B), pods(A, C)],
    expected: &[
        says(A, Code::EncapsulationLost, B, BOTH, WIRE),
        says(B, Code::EncapsulationLost, A, BOTH, WIRE),
    ],
    // A pair that has a verdict is given no bursts: eight steady losses, one
    // a second, tell that the fault is back.
    limits: Limits { settle: Duration::from_secs(15), ..HARD },
    ..PLAIN
};

/// Two full periods, and then the fault is there for good.
fn come_and_go(cluster: &mut Cluster, phase: Duration) -> Result<()> {
    for _ in 0..2 {
        block_tunnel(cluster, true)?;
        interrupt::sleep(phase)?;
        middle_passes(cluster)?;
        interrupt::sleep(phase)?;
    }
    block_tunnel(cluster, true)
}

/// Drops the encapsulation from A to B, and back.
pub(super) fn block_tunnel(cluster: &mut Cluster, both_ways: bool) -> Result<()> {
    let (a, b) = addresses(cluster, A, B)?;
    let shape = cluster.shape;
    let encapsulated =
        |from, to| Drops { from: Some(from), to: Some(to), ..Drops::tunnelled(shape) };
    let mut drops = vec![encapsulated(a, b)];
    if both_ways {
        drops.push(encapsulated(b, a));
    }
    filter::drop(&cluster.switch, Place::Middle, &drops)
}

/// Drops everything between A and B.
pub(super) fn block_pair(cluster: &Cluster) -> Result<()> {
    let (a, b) = (cluster.node(A)?.name.clone(), cluster.node(B)?.name.clone());
    let all = |from: &str, to: &str| Drops {
        in_port: Some(from.to_owned()),
        out_port: Some(to.to_owned()),
        ..Drops::default()
    };
    filter::drop(&cluster.switch, Place::Middle, &[all(&a, &b), all(&b, &a)])
}

/// Drops long packets from A to B, and back.
pub(super) fn narrow(cluster: &Cluster, both_ways: bool) -> Result<()> {
    let (a, b) = addresses(cluster, A, B)?;
    let long = |from, to| Drops {
        from: Some(from),
        to: Some(to),
        longer_than: Some(PATH_MTU),
        ..Drops::default()
    };
    let mut drops = vec![long(a, b)];
    if both_ways {
        drops.push(long(b, a));
    }
    filter::drop(&cluster.switch, Place::Middle, &drops)
}

pub(super) fn middle_passes(cluster: &mut Cluster) -> Result<()> {
    filter::pass(&cluster.switch, Place::Middle)
}

fn blackhole(cluster: &Cluster, verb: &str) -> Result<()> {
    let (_, b) = addresses(cluster, A, B)?;
    cluster.node(A)?.netns.ip(&format!("route {verb} blackhole {b}/32\n"))
}

/// Sets a node's port on the switch `up` or `down`.
pub(super) fn set_port(cluster: &Cluster, node: usize, state: &str) -> Result<()> {
    let port = &cluster.node(node)?.name;
    cluster.switch.ip(&format!("link set {port} {state}\n"))
}
