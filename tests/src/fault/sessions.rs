//! BGP between the nodes, by bird, as Calico runs it; and what services of a
//! node say of themselves.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlaywatch_core::catalog::Code;
use overlaywatch_core::finding::Thing;

use super::expected::{NO_DIRECTION, NO_HOP, Subject, says, says_itself};
use super::{A, B, C, Fault, HARD, Limits, PLAIN, addresses};
use crate::guest::{Daemon, Worker};
use crate::interrupt;
use crate::topology::{Cluster, Node};
use crate::traffic::{nodes, pods};

/// Nodes of the full mesh, as the incident had them.
const MESH: usize = 8;
/// A full mesh is there within this time.
const MESHED_WITHIN: Duration = Duration::from_secs(30);
/// Health ports of Felix, Cilium's agent and the kubelet.
pub(super) const FELIX: u16 = 9099;
const CILIUM: u16 = 9879;
const KUBELET: u16 = 10_248;

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "bgp-mesh",
        about: "eight nodes with seven BGP sessions each, and services that are well",
        nodes: MESH,
        inject: |cluster| {
            for port in [FELIX, CILIUM, KUBELET] {
                answers(cluster, A, port, 200)?;
            }
            mesh(cluster)
        },
        spares: &[pods(A, B), pods(B, A)],
        unlike: &[Code::BgpSessionDown, Code::FelixNotReady, Code::ServiceUnhealthy],
        limits: Limits { settle: Duration::from_secs(30), ..HARD },
        incident: Some(5),
        ..PLAIN
    },
    Fault {
        name: "bgp-session-blocked",
        about: "eight nodes with BGP sessions, and TCP 179 is blocked between two of them",
        nodes: MESH,
        inject: |cluster| {
            mesh(cluster)?;
            block(cluster)
        },
        heal: |cluster| {
            let lines = "delete table bridge overlaywatch-lab-bgp\n";
            on_switch(cluster, lines)
        },
        spares: &[pods(A, B), pods(B, A), nodes(A, B), pods(A, C)],
        expected: &[
            says(A, Code::BgpSessionDown, B, NO_DIRECTION, NO_HOP)
                .telling(&["6 of 7 BGP sessions established", "none with 10.0.0.12"]),
            says(B, Code::BgpSessionDown, A, NO_DIRECTION, NO_HOP)
                .telling(&["6 of 7 BGP sessions established", "none with 10.0.0.11"]),
        ],
        unlike: &[Code::RouteMissing],
        // The session itself needs nine seconds to notice.
        limits: Limits { detect: Duration::from_secs(40), ..HARD },
        incident: Some(5),
        ..PLAIN
    },
    Fault {
        name: "felix-not-ready",
        about: "Felix answers on one node that it is not ready",
        inject: |cluster| answers(cluster, A, FELIX, 503),
        heal: |cluster| {
            cluster.guests.clear();
            answers(cluster, A, FELIX, 200)
        },
        spares: &[pods(A, B), pods(B, A)],
        expected: &[says_itself(A, Code::FelixNotReady, Subject::Thing(Thing::Service, "felix"))
            .telling(&["127.0.0.1:9099/readiness answers 503"])],
        unlike: &[Code::ServiceUnhealthy],
        limits: ASKED,
        ..PLAIN
    },
    Fault {
        name: "kubelet-unhealthy",
        about: "the kubelet answers on one node that it is not well",
        inject: |cluster| answers(cluster, B, KUBELET, 500),
        heal: |cluster| {
            cluster.guests.clear();
            answers(cluster, B, KUBELET, 200)
        },
        spares: &[pods(A, B), pods(B, A)],
        expected: &[says_itself(
            B,
            Code::ServiceUnhealthy,
            Subject::Thing(Thing::Service, "kubelet"),
        )
        .telling(&["127.0.0.1:10248/healthz answers 500"])],
        unlike: &[Code::FelixNotReady],
        limits: ASKED,
        ..PLAIN
    },
];

/// A service is asked every few seconds, and believed after ten.
const ASKED: Limits = Limits { detect: Duration::from_secs(35), ..HARD };

/// A service on a node's loopback.
pub(super) fn answers(cluster: &mut Cluster, node: usize, port: u16, status: u16) -> Result<()> {
    let service = Worker::answer(&cluster.node(node)?.netns, port, status)?;
    cluster.guests.push(Box::new(service));
    Ok(())
}

/// Runs bird on every node until the cluster is gone, and waits until each has
/// a session with each.
fn mesh(cluster: &mut Cluster) -> Result<()> {
    let mut daemons = Vec::with_capacity(cluster.nodes.len());
    for node in &cluster.nodes {
        let file = cluster.directory().join(format!("{}.bird.conf", node.name));
        fs::write(&file, configuration(cluster, node)?)?;
        let mut command = node.netns.command("bird");
        command.arg("-f").arg("-c").arg(&file).arg("-s").arg(control(cluster, node));
        daemons.push(Daemon::start(command).context("cannot run bird: install bird2")?);
    }
    for daemon in daemons {
        cluster.guests.push(Box::new(daemon));
    }
    let wanted = cluster.nodes.len() - 1;
    let is_meshed = interrupt::wait_until(MESHED_WITHIN, || {
        cluster
            .nodes
            .iter()
            .try_fold(true, |all, node| Ok(all && sessions(cluster, node)? == wanted))
    })?;
    ensure!(is_meshed, "the nodes' BGP daemons did not find each other");
    Ok(())
}

fn control(cluster: &Cluster, node: &Node) -> PathBuf {
    cluster.directory().join(format!("{}.bird.ctl", node.name))
}

/// Sessions that a node's bird says are established.
fn sessions(cluster: &Cluster, node: &Node) -> Result<usize> {
    let output = node
        .netns
        .command("birdc")
        .arg("-s")
        .arg(control(cluster, node))
        .args(["show", "protocols"])
        .output()
        .context("cannot run birdc: install bird2")?;
    // A bird that is not there yet has none.
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(said.lines().filter(|line| line.contains("Established")).count())
}

/// One autonomous system as Calico's full mesh is, with sessions that notice
/// within seconds what takes others minutes.
fn configuration(cluster: &Cluster, node: &Node) -> Result<String> {
    let own = node.underlay();
    let mut text = format!(
        "router id {own};\n\
         protocol device {{}}\n\
         template bgp mesh {{\n\
           local {own} as 64512;\n\
           ipv4 {{ import none; export none; }};\n\
           connect delay time 1;\n\
           connect retry time 3;\n\
           error wait time 1, 3;\n\
           hold time 9;\n\
           keepalive time 3;\n\
         }}\n"
    );
    for peer in cluster.nodes.iter().filter(|peer| peer.index != node.index) {
        let (number, address) = (peer.index + 1, peer.underlay());
        writeln!(text, "protocol bgp node{number} from mesh {{ neighbor {address} as 64512; }}")?;
    }
    Ok(text)
}

/// Drops BGP between the first two nodes, in the middle.
fn block(cluster: &Cluster) -> Result<()> {
    let (a, b) = addresses(cluster, A, B)?;
    let rule =
        |port: &str| format!("ip saddr {{ {a}, {b} }} ip daddr {{ {a}, {b} }} tcp {port} 179 drop");
    on_switch(
        cluster,
        &format!(
            "table bridge overlaywatch-lab-bgp {{\n\
             chain drops {{\n\
             type filter hook forward priority 0;\n\
             {}\n\
             {}\n\
             }}\n\
             }}\n",
            rule("dport"),
            rule("sport")
        ),
    )
}

fn on_switch(cluster: &Cluster, lines: &str) -> Result<()> {
    let file = cluster.directory().join("switch.nft");
    fs::write(&file, lines)?;
    let output = cluster.switch.command("nft").arg("-f").arg(&file).output();
    let output = output.context("cannot run nft: install nftables")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
