//! Faults of tunnel devices.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use overlaywatch_core::catalog::Code;

use super::{
    A, AFTER_REMOTE_TUNNEL, ANYWHERE, B, BEFORE_REMOTE_TUNNEL, BOTH, C, Expected, Fault, OUTBOUND,
    PLAIN, Subject, hears_nothing, ip, says, says_itself,
};
use crate::topology::Cluster;
use crate::traffic::{Path, full_pods, nodes, pods};

/// An address of the underlay that no node has: the one that DHCP gave before.
const FORMER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 199);

/// What udev gives a device at boot where MACAddressPolicy= is not `none`.
const NEW_MAC: &str = "0e:42:00:00:01:02";

const AROUND_B: &[Path] = &[pods(A, B), pods(B, A), pods(C, B)];
const BESIDE_B: &[Path] = &[pods(A, C), pods(C, A), nodes(A, B)];

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "tunnel-down-remote",
        about: "one node's tunnel device is switched off; its routes go with it",
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
        spares: BESIDE_B,
        expected: &[
            says_itself(B, Code::TunnelDown, Subject::Tunnel),
            says(A, Code::RemoteTunnelDown, B, BOTH, BEFORE_REMOTE_TUNNEL),
            says(C, Code::RemoteTunnelDown, B, BOTH, BEFORE_REMOTE_TUNNEL),
        ],
        unlike: &[Code::TunnelMissing],
        ..PLAIN
    },
    Fault {
        name: "dstport-mismatch",
        about: "one node's tunnel device uses another UDP port",
        inject: |cluster| cluster.remake_tunnel(B, |vtep| vtep.port += 1),
        heal: remake_b,
        breaks: AROUND_B,
        spares: BESIDE_B,
        expected: &mismatch(Code::VxlanPortMismatch),
        unlike: &[Code::VniMismatch, Code::RemoteTunnelDown],
        ..PLAIN
    },
    Fault {
        name: "vni-mismatch",
        about: "one node's tunnel device uses another VNI",
        inject: |cluster| cluster.remake_tunnel(B, |vtep| vtep.vni += 1),
        heal: remake_b,
        breaks: AROUND_B,
        spares: BESIDE_B,
        expected: &mismatch(Code::VniMismatch),
        unlike: &[Code::VxlanPortMismatch],
        ..PLAIN
    },
    Fault {
        name: "tunnel-deleted",
        about: "one node's tunnel device is gone",
        inject: |cluster| {
            let device = cluster.shape.device();
            ip(cluster, B, &format!("link del {device}"))
        },
        heal: |cluster| cluster.make_tunnel(B, |_| {}),
        breaks: AROUND_B,
        spares: BESIDE_B,
        expected: &[
            says_itself(B, Code::TunnelMissing, Subject::Tunnel),
            // B has nothing to send through: only one direction can be told.
            says(A, Code::EncapsulationLost, B, OUTBOUND, ANYWHERE),
            says(C, Code::EncapsulationLost, B, OUTBOUND, ANYWHERE),
        ],
        unlike: &[Code::TunnelDown],
        ..PLAIN
    },
    Fault {
        name: "vtep-mac-changed",
        about: "one node's tunnel device was made anew with a MAC that the others were not told",
        inject: |cluster| cluster.remake_tunnel(B, |vtep| vtep.mac = NEW_MAC.to_owned()),
        heal: remake_b,
        breaks: &[pods(A, B), pods(C, B)],
        spares: &[pods(A, C), nodes(A, B)],
        expected: &[
            says(A, Code::StaleVtepMac, B, OUTBOUND, AFTER_REMOTE_TUNNEL),
            says(C, Code::StaleVtepMac, B, OUTBOUND, AFTER_REMOTE_TUNNEL),
            hears_nothing(B, A),
            hears_nothing(B, C),
        ],
        unlike: &[Code::FdbMissing, Code::FdbMisdirected],
        ..PLAIN
    },
    Fault {
        name: "underlay-mtu-lowered",
        about: "one node's NIC gets a smaller MTU than its tunnel needs",
        inject: |cluster| ip(cluster, B, "link set eth0 mtu 1400"),
        heal: |cluster| ip(cluster, B, "link set eth0 mtu 1500"),
        breaks: &[full_pods(A, B), full_pods(C, B)],
        spares: &[pods(A, B), pods(B, A), full_pods(A, C)],
        expected: &[
            says_itself(B, Code::TunnelMtuTooLarge, Subject::Tunnel),
            says(A, Code::MtuBlackhole, B, OUTBOUND, ANYWHERE),
            says(C, Code::MtuBlackhole, B, OUTBOUND, ANYWHERE),
        ],
        ..PLAIN
    },
    Fault {
        name: "forwarding-off",
        about: "one node's kernel forwards no packets any more",
        inject: |cluster| forward(cluster, "0"),
        heal: |cluster| forward(cluster, "1"),
        breaks: &[pods(A, B), pods(B, A)],
        spares: &[pods(A, C), nodes(A, B)],
        expected: &[says_itself(B, Code::ForwardingOff, Subject::Node)],
        unlike: &[Code::RouteMissing],
        ..PLAIN
    },
    Fault {
        name: "vtep-local-ip-wrong",
        about: "one node's tunnel device sends from an address that the node lost",
        inject: |cluster| send_from(cluster, FORMER),
        heal: |cluster| send_from(cluster, cluster.node(A)?.underlay()),
        breaks: &[pods(A, B), pods(A, C)],
        spares: &[pods(B, A), pods(B, C), nodes(A, B)],
        expected: &[
            says_itself(A, Code::VtepLocalAddressWrong, Subject::Tunnel),
            hears_nothing(B, A),
            hears_nothing(C, A),
        ],
        ..PLAIN
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

fn forward(cluster: &Cluster, value: &str) -> Result<()> {
    cluster.node(B)?.netns.enter(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", value).context("cannot set ip_forward")
    })
}

/// Changes the outer source address of A's tunnel device in place.
fn send_from(cluster: &Cluster, local: Ipv4Addr) -> Result<()> {
    let device = cluster.shape.device();
    ip(cluster, A, &format!("link set {device} type vxlan local {local}"))
}

fn remake_b(cluster: &mut Cluster) -> Result<()> {
    cluster.remake_tunnel(B, |_| {})
}
