//! eBPF programs of others on NICs, and checksums that offloads leave wrong.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlaywatch_core::catalog::Code;
use overlaywatch_core::finding::Thing;

use super::expected::{
    DECAPSULATION, Expected, INBOUND, OUTBOUND, Subject, counts, says, says_itself,
};
use super::quiet::watch;
use super::{A, B, C, Fault, HARD, Limits, PLAIN, Shapes};
use crate::offload;
use crate::program::{self, Mode};
use crate::topology::Cluster;
use crate::traffic::{nodes, pods};

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "xdp-generic-drop",
        about: "somebody else's XDP program on one node's NIC drops the encapsulation, by the kernel",
        inject: |cluster| drop_by_xdp(cluster, Mode::Generic),
        heal: |cluster| program::pass(&cluster.node(B)?.netns, Mode::Generic),
        expected: &[
            says(A, Code::UnexplainedLoss, B, OUTBOUND, DECAPSULATION),
            says(C, Code::UnexplainedLoss, B, OUTBOUND, DECAPSULATION),
            drops_by_xdp("eth0 ingress xdpgeneric guard_overlay"),
        ],
        ..BY_XDP
    },
    Fault {
        name: "xdp-native-drop",
        about: "somebody else's XDP program on one node's NIC drops the encapsulation, by the driver",
        inject: |cluster| drop_by_xdp(cluster, Mode::Native),
        heal: |cluster| program::pass(&cluster.node(B)?.netns, Mode::Native),
        expected: &[
            says(A, Code::UnexplainedLoss, B, OUTBOUND, DECAPSULATION),
            says(C, Code::UnexplainedLoss, B, OUTBOUND, DECAPSULATION),
            drops_by_xdp("eth0 ingress xdp guard_overlay"),
        ],
        ..BY_XDP
    },
    Fault {
        name: "programs-beside",
        about: "an XDP program and Cilium's classifiers on one node's NIC drop nothing of ours",
        inject: |cluster| {
            let netns = &cluster.node(A)?.netns;
            // Nobody sends to the discard service (RFC 863).
            program::drop_udp(netns, Mode::Generic, 9)?;
            program::classify(netns, "ingress", 1, "cil_from_netdev")?;
            program::classify(netns, "egress", 1, "cil_to_netdev")
        },
        heal: |cluster| {
            let netns = &cluster.node(A)?.netns;
            program::declassify(netns, "ingress", 1)?;
            program::declassify(netns, "egress", 1)?;
            program::pass(netns, Mode::Generic)
        },
        unlike: &[Code::ForeignProgramDrops, Code::CiliumProgramTwice],
        limits: watch(40),
        ..PLAIN
    },
    Fault {
        name: "cilium-program-twice",
        about: "an agent of Cilium attached its program again and left the one before",
        inject: |cluster| {
            let netns = &cluster.node(A)?.netns;
            program::classify(netns, "ingress", 1, "cil_from_netdev")?;
            program::classify(netns, "ingress", 2, "cil_from_netdev")
        },
        heal: |cluster| {
            let netns = &cluster.node(A)?.netns;
            program::declassify(netns, "ingress", 2)?;
            program::declassify(netns, "ingress", 1)
        },
        expected: &[says_itself(
            A,
            Code::CiliumProgramTwice,
            Subject::Thing(Thing::Program, "eth0 ingress cil_from_netdev"),
        )
        .telling(&["pref 1 ", "pref 2 "])],
        unlike: &[Code::ForeignProgramDrops],
        limits: Limits { detect: Duration::from_secs(40), ..HARD },
        ..PLAIN
    },
    Fault {
        name: "udp-checksum-errors",
        about: "what is sent to one node through VXLAN comes with a wrong outer checksum",
        inject: |cluster| {
            for node in [A, B, C] {
                checksums(cluster, node, false)?;
            }
            // VXLAN over IPv4 has none, which is right; any other must be right.
            let (node, port) = (cluster.node(B)?.underlay(), cluster.shape.port());
            let rule = format!("ip daddr {node} udp dport {port} udp checksum set 0x4f57");
            nft(
                cluster,
                &format!(
                    "add table bridge overlaywatch\n\
                 add chain bridge overlaywatch breaks {{ type filter hook forward priority 0; }}\n\
                 add rule bridge overlaywatch breaks {rule}\n"
                ),
            )
        },
        heal: |cluster| {
            nft(cluster, "delete table bridge overlaywatch\n")?;
            [A, B, C].into_iter().try_for_each(|node| checksums(cluster, node, true))
        },
        breaks: &[pods(A, B), pods(C, B)],
        spares: &[pods(B, A), nodes(A, B), pods(A, C)],
        expected: &[
            says(A, Code::UnexplainedLoss, B, OUTBOUND, DECAPSULATION),
            says(C, Code::UnexplainedLoss, B, OUTBOUND, DECAPSULATION),
            says_itself(B, Code::ChecksumErrors, Subject::Uplink)
                .going(INBOUND, DECAPSULATION)
                .telling(&["UDP_CSUM", "driver veth", "UdpInCsumErrors"]),
        ],
        counted: &[counts(B, A, INBOUND, DECAPSULATION), counts(B, C, INBOUND, DECAPSULATION)],
        unlike: &[Code::EncapsulationLost, Code::ForeignProgramDrops],
        ..PLAIN
    },
    Fault {
        name: "checksums-by-cpu",
        about: "two nodes and the ports between them leave no checksum to the hardware",
        inject: |cluster| [A, B].into_iter().try_for_each(|node| checksums(cluster, node, false)),
        heal: |cluster| [A, B].into_iter().try_for_each(|node| checksums(cluster, node, true)),
        spares: &[pods(A, B), pods(B, A), nodes(A, B)],
        unlike: &[Code::ChecksumErrors],
        limits: watch(15),
        ..PLAIN
    },
];

/// IPPROTO_IPIP.
const IPIP: u8 = 4;

/// The kernel says of a packet that an XDP program dropped that it reached the NIC.
const BY_XDP: Fault = Fault {
    shapes: Shapes::Each,
    breaks: &[pods(A, B), pods(C, B)],
    spares: &[pods(B, A), nodes(A, B), pods(A, C)],
    counted: &[counts(B, A, INBOUND, DECAPSULATION), counts(B, C, INBOUND, DECAPSULATION)],
    unlike: &[Code::EncapsulationLost, Code::EncapsulationRefused, Code::ChecksumErrors],
    ..PLAIN
};

const fn drops_by_xdp(name: &'static str) -> Expected {
    says_itself(B, Code::ForeignProgramDrops, Subject::Thing(Thing::Program, name))
        .going(INBOUND, DECAPSULATION)
        .telling(&[" id "])
}

fn drop_by_xdp(cluster: &Cluster, mode: Mode) -> Result<()> {
    let netns = &cluster.node(B)?.netns;
    if cluster.shape.is_vxlan() {
        program::drop_udp(netns, mode, cluster.shape.port())
    } else {
        program::drop_protocol(netns, mode, IPIP)
    }
}

/// A node's NIC, and the port of the switch that it is plugged into.
fn checksums(cluster: &Cluster, node: usize, by_hardware: bool) -> Result<()> {
    let node = cluster.node(node)?;
    offload::checksums(&node.netns, "eth0", by_hardware)?;
    offload::checksums(&cluster.switch, &node.name, by_hardware)
}

fn nft(cluster: &Cluster, lines: &str) -> Result<()> {
    let output = cluster
        .switch
        .command("nft")
        .arg(lines)
        .output()
        .context("cannot run nft: install nftables")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft failed: {}", said.trim());
    Ok(())
}
