//! Routes into tunl0 that bird makes of what it hears by BGP, as Calico's does.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use overlaywatch_core::catalog::Code;

use super::expected::{LOCAL_STACK, NO_DIRECTION, NO_HOP, OUT_OR_BOTH, counts, says};
use super::ipip::IN_IPIP;
use super::sessions::{ask, block, mesh_by, unblock};
use super::{A, B, C, Fault, HARD, Limits};
use crate::interrupt;
use crate::topology::{Cluster, Node};
use crate::traffic::{nodes, pods};

/// A session is up before its routes are there.
const ROUTED_WITHIN: Duration = Duration::from_secs(20);

pub(super) const FAULTS: &[Fault] = &[Fault {
    name: "bgp-routes-withdrawn",
    about: "bird makes the routes into tunl0, and TCP 179 is blocked between two nodes",
    inject: |cluster| {
        mesh_by(cluster, &["-R"], configuration)?;
        learn(cluster)?;
        block(cluster)
    },
    heal: |cluster| unblock(cluster),
    breaks: &[pods(A, B), pods(B, A)],
    spares: &[nodes(A, B), pods(A, C), pods(C, A), pods(B, C), pods(C, B)],
    // That the routes are missing follows from it.
    expected: &[
        says(A, Code::BgpSessionDown, B, NO_DIRECTION, NO_HOP)
            .telling(&["1 of 2 BGP sessions established", "none with 10.0.0.12"]),
        says(B, Code::BgpSessionDown, A, NO_DIRECTION, NO_HOP)
            .telling(&["1 of 2 BGP sessions established", "none with 10.0.0.11"]),
    ],
    counted: &[counts(A, B, OUT_OR_BOTH, LOCAL_STACK), counts(B, A, OUT_OR_BOTH, LOCAL_STACK)],
    unlike: &[Code::RouteBlackhole, Code::EncapsulationLost],
    // The session itself needs nine seconds to notice.
    limits: Limits { detect: Duration::from_secs(40), ..HARD },
    ..IN_IPIP
}];

/// Waits until every node's bird has a route to each other one's block from it.
fn learn(cluster: &Cluster) -> Result<()> {
    let wanted = cluster.nodes.len() - 1;
    let learnt = interrupt::wait_until(ROUTED_WITHIN, || {
        cluster.nodes.iter().try_fold(true, |all, node| {
            let said = ask(cluster, node, &["show", "route", "table", "master4", "primary"])?;
            Ok(all && said.matches("on tunl0").count() == wanted)
        })
    })?;
    ensure!(learnt, "the nodes' BGP daemons did not tell each other of their blocks");
    Ok(())
}

/// A full mesh as Calico has it (confd, bird.cfg): each node tells of its block,
/// and of a peer's block the way is the peer through tunl0. Calico's own bird has a
/// word for that (`krt_tunnel`); Debian's finds the device by a table that has the
/// nodes behind it, and gives routes a metric unless told. Started as after a crash
/// (`-R`), it leaves the routes that are there until it has heard all others.
fn configuration(cluster: &Cluster, node: &Node) -> Result<String> {
    let (own, block) = (node.underlay(), cluster.shape.pod_network(node));
    let mut text = format!(
        "router id {own};\n\
         graceful restart wait 20;\n\
         ipv4 table tunnels;\n\
         protocol device {{}}\n\
         protocol kernel {{ persist; metric 0; scan time 2; ipv4 {{ export all; }}; }}\n\
         protocol static own {{ ipv4; route {block} blackhole; }}\n\
         template bgp mesh {{\n\
           local {own} as 64512;\n\
           graceful restart on;\n\
           ipv4 {{ gateway recursive; igp table tunnels; import all; next hop self; export where proto = \"own\"; }};\n\
           connect delay time 1;\n\
           connect retry time 3;\n\
           error wait time 1, 3;\n\
           hold time 9;\n\
           keepalive time 3;\n\
         }}\n\
         protocol static nodes {{\n\
           ipv4 {{ table tunnels; }};\n"
    );
    let peers = || cluster.nodes.iter().filter(|peer| peer.index != node.index);
    let device = cluster.shape.device();
    for peer in peers() {
        let address = peer.underlay();
        writeln!(text, "  route {address}/32 via {address}%{device} onlink;")?;
    }
    text.push_str("}\n");
    for peer in peers() {
        let (number, address) = (peer.index + 1, peer.underlay());
        writeln!(text, "protocol bgp node{number} from mesh {{ neighbor {address} as 64512; }}")?;
    }
    Ok(text)
}
