//! Network policies of kube-router's controller, which K3s has within it, on nodes
//! where it runs and where it does no more.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlaywatch_core::catalog::Code;
use overlaywatch_core::finding::Thing;

use super::expected::{Subject, says_itself};
use super::{A, B, C, Fault, HARD, Limits, PLAIN};
use crate::topology::Cluster;
use crate::traffic::pods;

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "kube-router-leftover",
        about: "a node of a cluster without K3s still has the policies of kube-router's controller",
        inject: |cluster| {
            cluster.run_as(A, "kubelet")?;
            sh(cluster, A, POLICIES)
        },
        heal: |cluster| sh(cluster, A, UNHOOK),
        expected: &[says_itself(
            A,
            Code::NetworkPolicyLeftover,
            Subject::Thing(Thing::Leftover, "kube-router"),
        )
        .telling(&[
            "5 chains with 8 rules, of which 1 drop or reject",
            "ip filter FORWARD (handle ",
            "while kubelet (process ",
            "2 sets are named as kube-router names its own",
        ])],
        unlike: &[Code::CniLeftover, Code::ForwardPolicyDrop, Code::IpsetReaderBehind],
        // Nothing is said before two minutes: a pod may be replaced.
        limits: Limits { detect: Duration::from_secs(170), ..HARD },
        ..SPARED
    },
    Fault {
        name: "kube-router-as-it-should-be",
        about: "the policies of a controller that runs, and those of one that is gone, which \
                nothing leads into any more",
        inject: |cluster| {
            cluster.run_as(A, "kubelet")?;
            cluster.run_as(A, "kube-router")?;
            sh(cluster, A, POLICIES)?;
            cluster.run_as(B, "kubelet")?;
            cluster.run_as(B, "k3s-agent")?;
            sh(cluster, B, POLICIES)?;
            cluster.run_as(C, "kubelet")?;
            sh(cluster, C, POLICIES)?;
            sh(cluster, C, UNHOOK)
        },
        unlike: &[Code::NetworkPolicyLeftover],
        limits: Limits { settle: Duration::from_secs(160), ..HARD },
        ..SPARED
    },
];

/// What loses no packet of the lab's own.
const SPARED: Fault = Fault { spares: &[pods(A, B), pods(B, C), pods(C, A)], ..PLAIN };

/// What the controller writes for one pod with one policy
/// (pkg/controllers/netpol, kube-router), for addresses that nobody here has.
const POLICIES: &str = "\
ipset create KUBE-SRC-LAB hash:ip family inet
ipset create KUBE-DST-LAB hash:ip family inet
ipset add KUBE-DST-LAB 10.244.7.5
iptables-nft-restore --noflush <<'RULES'
*filter
:KUBE-ROUTER-INPUT - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
:KUBE-ROUTER-OUTPUT - [0:0]
:KUBE-POD-FW-LAB - [0:0]
:KUBE-NWPLCY-LAB - [0:0]
-A KUBE-ROUTER-INPUT -d 10.43.0.0/16 -j RETURN
-A KUBE-ROUTER-INPUT -s 10.244.7.5/32 -j KUBE-POD-FW-LAB
-A KUBE-ROUTER-FORWARD -d 10.244.7.5/32 -j KUBE-POD-FW-LAB
-A KUBE-ROUTER-OUTPUT -s 10.244.7.5/32 -j KUBE-POD-FW-LAB
-A KUBE-POD-FW-LAB -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-POD-FW-LAB -j KUBE-NWPLCY-LAB
-A KUBE-POD-FW-LAB -m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp-port-unreachable
-A KUBE-NWPLCY-LAB -m set --match-set KUBE-SRC-LAB src -m set --match-set KUBE-DST-LAB dst \
-j MARK --set-xmark 0x10000/0x10000
-A INPUT -m comment --comment \"kube-router netpol\" -j KUBE-ROUTER-INPUT
-A FORWARD -m comment --comment \"kube-router netpol\" -j KUBE-ROUTER-FORWARD
-A OUTPUT -m comment --comment \"kube-router netpol\" -j KUBE-ROUTER-OUTPUT
COMMIT
RULES";

/// What the remedy says.
const UNHOOK: &str = "\
for chain in INPUT FORWARD OUTPUT; do
nft -a list chain ip filter $chain | sed -n 's/.*jump KUBE-ROUTER.* handle //p' | while read handle
do nft delete rule ip filter $chain handle $handle
done
done";

fn sh(cluster: &Cluster, node: usize, script: &str) -> Result<()> {
    let mut command = cluster.node(node)?.netns.command("sh");
    let output = command.args(["-ec", script]).output().context("cannot run sh")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{script}` failed: {}", said.trim());
    Ok(())
}
