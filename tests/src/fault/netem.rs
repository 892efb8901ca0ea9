//! What a long or uneven line does to packets: netem on the switch's ports
//! (tc-netem(8)). A cluster of two, since a port is everybody's way to its node.

use anyhow::Result;
use overlaywatch_core::catalog::Code;

use super::ipip::IN_IPIP;
use super::quiet::watch;
use super::{A, B, Fault};
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
];

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
