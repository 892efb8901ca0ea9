//! What a long or uneven line does to packets: netem on the switch's ports
//! (tc-netem(8)). A cluster of two, since a port is everybody's way to its node.

use std::time::Duration;

use anyhow::Result;
use overlaywatch_core::catalog::Code;

use super::expected::{EITHER, Expected, WIRE, says};
use super::ipip::IN_IPIP;
use super::quiet::watch;
use super::{A, B, Fault, GRAY, Limits, Loss};
use crate::need::Need;
use crate::topology::Cluster;
use crate::traffic::{full_pods, nodes, pods};

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "netem-latency",
        about: "the path between two nodes takes 50 ms longer, each way",
        inject: |cluster| emulate(cluster, "delay 50ms"),
        ..LOSES_NOTHING
    },
    Fault {
        name: "netem-jitter",
        about: "the path between two nodes takes 5 to 75 ms longer, each way",
        inject: |cluster| emulate(cluster, "delay 40ms 35ms"),
        ..LOSES_NOTHING
    },
    Fault {
        name: "netem-reordering",
        about: "a quarter of the packets between two nodes overtake the others by 20 ms",
        inject: |cluster| emulate(cluster, "delay 20ms reorder 25%"),
        ..LOSES_NOTHING
    },
    Fault {
        name: "netem-duplication",
        about: "three in ten packets between two nodes arrive twice",
        inject: |cluster| emulate(cluster, "duplicate 30%"),
        ..LOSES_NOTHING
    },
    Fault {
        name: "netem-loss-10",
        about: "the path between two nodes loses one packet in ten by chance, each way",
        inject: |cluster| emulate(cluster, "loss random 10%"),
        ..LOSES_SOME
    },
    Fault {
        name: "netem-loss-3",
        about: "the path between two nodes loses 3 in 100 packets by chance, each way",
        inject: |cluster| emulate(cluster, "loss random 3%"),
        ..LOSES_SOME
    },
    Fault {
        name: "netem-loss-1",
        about: "the path between two nodes loses one packet in 100 by chance, each way",
        inject: |cluster| emulate(cluster, "loss random 1%"),
        // No flow of the lab's own need lose a packet within its first seconds.
        breaks: &[],
        ..LOSES_SOME
    },
    Fault {
        name: "netem-loss-half",
        about: "the path between two nodes loses one packet in 200 by chance, each way",
        inject: |cluster| emulate(cluster, "loss random 0.5%"),
        breaks: &[],
        limits: Limits { detect: Duration::from_secs(300), ..LOSES_SOME.limits },
        ..LOSES_SOME
    },
];

/// What is lost on the wire is lost with the encapsulation and without.
const LOST: [Expected; 2] =
    [says(A, Code::UnderlayLoss, B, EITHER, WIRE), says(B, Code::UnderlayLoss, A, EITHER, WIRE)];

const LOSES_SOME: Fault = Fault {
    breaks: &[pods(A, B), nodes(A, B)],
    loss: Loss::Partial,
    spares: &[],
    expected: &LOST,
    unlike: &[Code::OverlayLoss, Code::EncapsulationLost, Code::PeerUnreachable],
    // The seldomer packets were lost, the longer it takes to believe that none are.
    limits: Limits { settle: Duration::from_secs(30), clear: Duration::from_secs(240), ..GRAY },
    ..LOSES_NOTHING
};

const LOSES_NOTHING: Fault = Fault {
    nodes: 2,
    needs: &[Need::Netem],
    heal: |cluster| of_ports(cluster, "del", ""),
    spares: &[pods(A, B), pods(B, A), full_pods(A, B), nodes(A, B)],
    unlike: &[
        Code::EncapsulationLost,
        Code::OverlayLoss,
        Code::UnderlayLoss,
        Code::UnexplainedLoss,
        Code::PeerUnreachable,
    ],
    limits: watch(30),
    ..IN_IPIP
};

fn emulate(cluster: &mut Cluster, what: &str) -> Result<()> {
    of_ports(cluster, "add", &format!(" netem {what}"))
}

/// Sets what happens to packets on their way to either node.
fn of_ports(cluster: &Cluster, verb: &str, what: &str) -> Result<()> {
    let ports = cluster.nodes.iter().map(|node| node.name.as_str());
    let lines: String = ports.map(|port| format!("qdisc {verb} dev {port} root{what}\n")).collect();
    cluster.switch.tc(&lines)
}
