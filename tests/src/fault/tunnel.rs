//! Faults of tunnel devices.

use std::net::Ipv4Addr;

use anyhow::Result;
use overlaywatch_core::catalog::Code;

use super::{
    A, B, BEFORE_REMOTE_TUNNEL, BOTH, C, Expected, Fault, HARD, Loss, Subject, hears_nothing, ip,
    says, says_itself,
};
use crate::topology::Cluster;
use crate::traffic::{Path, nodes, pods};

/// An address of the underlay that no node has: the one that DHCP gave before.
const FORMER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 199);

const AROUND_B: &[Path] = &[pods(A, B), pods(B, A), pods(C, B)];
const BESIDE_B: &[Path] = &[pods(A, C), pods(C, A), nodes(A, B)];

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "tunnel-down-remote",
        about: "one node's tunnel device is switched off; its routes go with it",
        nodes: 3,
        inject: |cluster| {
            let device = cluster.shape.device();
            ip(cluster, B, &format!("link set {device} down"))
        },
        heal: |cluster| {
            let device = cluster.shape.device();
            ip(cluster, B, &format!("link set {device} up"))?;
            cluster.program(B)
        },
        breaks: AROUND_B,
        loss: Loss::Total,
        spares: BESIDE_B,
        expected: &[
            says_itself(B, Code::TunnelDown, Subject::Tunnel),
            says(A, Code::RemoteTunnelDown, B, BOTH, BEFORE_REMOTE_TUNNEL),
            says(C, Code::RemoteTunnelDown, B, BOTH, BEFORE_REMOTE_TUNNEL),
        ],
        limits: HARD,
    },
    Fault {
        name: "dstport-mismatch",
        about: "one node's tunnel device uses another UDP port",
        nodes: 3,
        inject: |cluster| cluster.remake_tunnel(B, |vtep| vtep.port += 1),
        heal: remake_b,
        breaks: AROUND_B,
        loss: Loss::Total,
        spares: BESIDE_B,
        expected: &mismatch(Code::VxlanPortMismatch),
        limits: HARD,
    },
    Fault {
        name: "vni-mismatch",
        about: "one node's tunnel device uses another VNI",
        nodes: 3,
        inject: |cluster| cluster.remake_tunnel(B, |vtep| vtep.vni += 1),
        heal: remake_b,
        breaks: AROUND_B,
        loss: Loss::Total,
        spares: BESIDE_B,
        expected: &mismatch(Code::VniMismatch),
        limits: HARD,
    },
    Fault {
        name: "vtep-local-ip-wrong",
        about: "one node's tunnel device sends from an address that the node lost",
        nodes: 3,
        inject: |cluster| send_from(cluster, FORMER),
        heal: |cluster| send_from(cluster, cluster.node(A)?.underlay()),
        breaks: &[pods(A, B), pods(A, C)],
        loss: Loss::Total,
        spares: &[pods(B, A), pods(B, C), nodes(A, B)],
        expected: &[
            says_itself(A, Code::VtepLocalAddressWrong, Subject::Tunnel),
            hears_nothing(B, A),
            hears_nothing(C, A),
        ],
        limits: HARD,
    },
];

/// Each pair of which B is one end disagrees.
const fn mismatch(code: Code) -> [Expected; 4] {
    [
        says(A, code, B, BOTH, BEFORE_REMOTE_TUNNEL),
        says(C, code, B, BOTH, BEFORE_REMOTE_TUNNEL),
        says(B, code, A, BOTH, BEFORE_REMOTE_TUNNEL),
        says(B, code, C, BOTH, BEFORE_REMOTE_TUNNEL),
    ]
}

/// Changes the outer source address of A's tunnel device in place.
fn send_from(cluster: &Cluster, local: Ipv4Addr) -> Result<()> {
    let device = cluster.shape.device();
    ip(cluster, A, &format!("link set {device} type vxlan local {local}"))
}

fn remake_b(cluster: &mut Cluster) -> Result<()> {
    cluster.remake_tunnel(B, |_| {})
}
