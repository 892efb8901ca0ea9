//! Rules about packets inside of a tunnel: what is not tracked, and what pods are
//! not told.

use anyhow::{Context, Result, ensure};
use overlaywatch_core::catalog::Code;
use overlaywatch_core::finding::Thing;

use super::expected::{
    DELIVERY, Expected, INBOUND, LOCAL_STACK, OUTBOUND, Subject, counts, says_itself,
};
use super::{A, B, C, Fault, LIVE, PLAIN, Shapes};
use crate::guest::Worker;
use crate::topology::Cluster;
use crate::traffic::{full_pods, nodes, pods};

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "untracked-inner",
        about: "a node does not track what comes out of the tunnel, and forwards only what it tracks",
        shapes: Shapes::Each,
        inject: |cluster| {
            untrack(cluster, B)?;
            sh(cluster, B, &of_tunnel(cluster, "ct state established,related,new accept"))?;
            sh(cluster, B, &of_tunnel(cluster, "drop"))
        },
        heal: |cluster| sh(cluster, B, "nft delete table inet lab"),
        breaks: &[pods(A, B), pods(C, B)],
        spares: &[pods(B, A), nodes(A, B), pods(A, C), pods(C, A)],
        expected: &[Expected {
            directions: INBOUND,
            hops: DELIVERY,
            ..says_itself(B, Code::UntrackedInner, chain("inet lab early")).telling(&[
                "hook prerouting",
                "notrack",
                "iifname",
                "NETFILTER_DROP",
            ])
        }],
        counted: &[counts(B, A, INBOUND, DELIVERY), counts(B, C, INBOUND, DELIVERY)],
        unlike: &[Code::ForwardPolicyDrop, Code::EncapsulationFiltered],
        limits: LIVE,
        ..PLAIN
    },
    Fault {
        name: "untracked-and-accepted",
        about: "a node does not track what comes out of the tunnel, and forwards it",
        shapes: Shapes::Each,
        inject: |cluster| {
            untrack(cluster, A)?;
            sh(cluster, A, &of_tunnel(cluster, "ct state untracked accept"))?;
            sh(cluster, A, &of_tunnel(cluster, "drop"))
        },
        heal: |cluster| sh(cluster, A, "nft delete table inet lab"),
        spares: &[pods(B, A), pods(A, B), pods(C, A)],
        unlike: &[Code::UntrackedInner],
        limits: super::quiet::watch(20),
        ..PLAIN
    },
    Fault {
        name: "icmp-too-big-filtered",
        about: "the way to one node takes less than pods send, and a node's firewall keeps that \
                from them",
        shapes: Shapes::Each,
        inject: |cluster| {
            sh(
                cluster,
                A,
                "iptables-nft -A OUTPUT -p icmp --icmp-type fragmentation-needed -j DROP",
            )?;
            narrow(cluster, "add")
        },
        heal: |cluster| {
            narrow(cluster, "del")?;
            sh(cluster, A, "nft delete table ip filter")
        },
        breaks: &[full_pods(A, B)],
        spares: &[pods(B, A), nodes(A, B), pods(A, C), full_pods(A, C)],
        expected: &[Expected {
            directions: OUTBOUND,
            hops: LOCAL_STACK,
            ..says_itself(A, Code::IcmpTooBigFiltered, chain("ip filter OUTPUT")).telling(&[
                "icmp type 3 icmp code 4 drop",
                "hook output",
                "PKT_TOO_BIG",
            ])
        }],
        counted: &[counts(A, B, OUTBOUND, LOCAL_STACK)],
        unlike: &[Code::MtuBlackhole, Code::EncapsulationFiltered],
        limits: LIVE,
        ..PLAIN
    },
    Fault {
        name: "icmp-too-big-told",
        about: "the way to one node takes less than pods send, which they are told, and a node \
                answers no pings",
        shapes: Shapes::Each,
        inject: |cluster| {
            sh(cluster, A, "iptables-nft -A OUTPUT -p icmp --icmp-type echo-reply -j DROP")?;
            narrow(cluster, "add")?;
            let to = vec![cluster.node(B)?.pod_address()];
            let sender = Worker::send(&cluster.node(A)?.pod, to, 1_400)?;
            cluster.guests.push(Box::new(sender));
            Ok(())
        },
        heal: |cluster| {
            cluster.guests.clear();
            narrow(cluster, "del")?;
            sh(cluster, A, "nft delete table ip filter")
        },
        spares: &[pods(B, A), nodes(A, B), pods(A, C), full_pods(A, C)],
        unlike: &[Code::IcmpTooBigFiltered, Code::UnexplainedLoss, Code::MtuBlackhole],
        limits: super::quiet::watch(20),
        ..PLAIN
    },
];

const fn chain(name: &'static str) -> Subject {
    Subject::Thing(Thing::Chain, name)
}

/// What comes out of a node's tunnel is not tracked; chains for what becomes of it.
fn untrack(cluster: &Cluster, node: usize) -> Result<()> {
    let device = cluster.shape.device();
    sh(
        cluster,
        node,
        &format!(
            "nft -f - <<'RULES'\n\
             table inet lab {{\n\
             chain early {{ type filter hook prerouting priority raw; iifname {device} notrack; }}\n\
             chain later {{ type filter hook forward priority filter; }}\n\
             }}\n\
             RULES"
        ),
    )
}

fn of_tunnel(cluster: &Cluster, rule: &str) -> String {
    format!("nft add rule inet lab later iifname {} {rule}", cluster.shape.device())
}

/// Gives A's way to B's pod an MTU that holds for what is forwarded, too (`mtu lock`,
/// ip_dst_mtu_maybe_forward, include/net/ip.h).
fn narrow(cluster: &Cluster, verb: &str) -> Result<()> {
    let (device, b) = (cluster.shape.device(), cluster.node(B)?);
    let (pod, gateway) = (b.pod_address(), cluster.shape.gateway(b));
    super::ip(
        cluster,
        A,
        &format!("route {verb} {pod}/32 via {gateway} dev {device} onlink mtu lock 1300"),
    )
}

fn sh(cluster: &Cluster, node: usize, script: &str) -> Result<()> {
    let mut command = cluster.node(node)?.netns.command("sh");
    let output = command.args(["-ec", script]).output().context("cannot run sh")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{script}` failed: {}", said.trim());
    Ok(())
}
