//! Faults of tunnel devices.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use overlaywatch_core::catalog::Code;
use overlaywatch_core::finding::Thing;

use super::expected::{
    BOTH, DECAPSULATION, DELIVERY, ENCAPSULATION, Expected, INBOUND, OUT_OR_BOTH, OUTBOUND,
    Subject, WIRE, counts, may_speak, misses, says, says_itself,
};
use super::{A, B, C, Fault, HARD, Limits, PLAIN, Shapes, ip};
use crate::interrupt;
use crate::ipip::IpipSender;
use crate::topology::Cluster;
use crate::traffic::{Path, full_pods, nodes, pods};

/// An address of the underlay that no node has: the one that DHCP gave before.
const FORMER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 199);

/// What udev gives a device at boot where MACAddressPolicy= is not `none`.
const NEW_MAC: &str = "0e:42:00:00:01:02";

/// How soon a kernel answers the first packet of a protocol that it does not know.
const REFUSES_WITHIN: Duration = Duration::from_secs(5);

const AROUND_B: &[Path] = &[pods(A, B), pods(B, A), pods(C, B)];
const BESIDE_B: &[Path] = &[pods(A, C), pods(C, A), nodes(A, B)];

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "tunnel-down-remote",
        about: "one node's tunnel device is switched off; its routes go with it",
        shapes: Shapes::Each,
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
            says(A, Code::RemoteTunnelDown, B, BOTH, DECAPSULATION),
            says(C, Code::RemoteTunnelDown, B, BOTH, DECAPSULATION),
        ],
        counted: &[
            // Whether B still has something to send through is the kernel's choice.
            counts(A, B, OUT_OR_BOTH, DECAPSULATION),
            counts(C, B, OUT_OR_BOTH, DECAPSULATION),
            may_speak(B, A),
            may_speak(B, C),
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
        // Each end sends over an encapsulation of its own: one cannot join the other's.
        counted: &[
            counts(A, B, OUT_OR_BOTH, DECAPSULATION),
            counts(C, B, OUT_OR_BOTH, DECAPSULATION),
            counts(B, A, OUT_OR_BOTH, DECAPSULATION),
            counts(B, C, OUT_OR_BOTH, DECAPSULATION),
        ],
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
            says(A, Code::EncapsulationRefused, B, OUTBOUND, DECAPSULATION)
                .telling(&["type 3, code 3"]),
            says(C, Code::EncapsulationRefused, B, OUTBOUND, DECAPSULATION),
        ],
        counted: &[may_speak(B, A), may_speak(B, C)],
        unlike: &[Code::TunnelDown],
        ..PLAIN
    },
    Fault {
        name: "stale-vtep-mac",
        about: "one node's tunnel device was made anew with a MAC that the others were not told",
        inject: |cluster| cluster.remake_tunnel(B, |vtep| vtep.mac = NEW_MAC.to_owned()),
        heal: remake_b,
        breaks: &[pods(A, B), pods(C, B)],
        spares: &[pods(A, C), nodes(A, B)],
        expected: &[
            says(A, Code::StaleVtepMac, B, OUTBOUND, DELIVERY),
            says(C, Code::StaleVtepMac, B, OUTBOUND, DELIVERY),
            misses(B, A, DELIVERY),
            misses(B, C, DELIVERY),
        ],
        unlike: &[Code::FdbMissing, Code::FdbMisdirected],
        ..PLAIN
    },
    UNDERLAY_MTU_LOWERED,
    Fault {
        name: "vtep-local-ip-wrong",
        about: "one node's tunnel device sends from an address that the node lost",
        inject: |cluster| send_from(cluster, FORMER),
        heal: |cluster| send_from(cluster, cluster.node(A)?.underlay()),
        breaks: &[pods(A, B), pods(A, C)],
        spares: &[pods(B, A), pods(B, C), nodes(A, B)],
        expected: &[
            says_itself(A, Code::VtepLocalAddressWrong, Subject::Tunnel),
            misses(B, A, ENCAPSULATION),
            misses(C, A, ENCAPSULATION),
        ],
        counted: &[counts(A, B, OUTBOUND, ENCAPSULATION), counts(A, C, OUTBOUND, ENCAPSULATION)],
        ..PLAIN
    },
    Fault {
        name: "metadata-tunnel-without-bpf",
        about: "one node's tunnel device wants each packet's tunnel from metadata that nobody sets",
        inject: |cluster| cluster.remake_external(A),
        heal: |cluster| cluster.remake_tunnel(A, |_| {}),
        breaks: &[pods(A, B), pods(A, C)],
        // What comes in finds the device by the port alone.
        spares: &[pods(B, C), nodes(A, B)],
        expected: &[
            says(A, Code::LocalOutputDrop, B, OUTBOUND, ENCAPSULATION),
            says(A, Code::LocalOutputDrop, C, OUTBOUND, ENCAPSULATION),
            misses(B, A, ENCAPSULATION),
            misses(C, A, ENCAPSULATION),
        ],
        unlike: &[Code::VniMismatch, Code::FdbMissing],
        ..PLAIN
    },
    Fault {
        name: "module-missing-ipip",
        about: "one node sends IPIP to another whose kernel has no module for it",
        inject: |cluster| {
            let sender = IpipSender::start(cluster, A, B)?;
            let refused = interrupt::wait_until(REFUSES_WITHIN, || Ok(sender.is_refused()))?;
            cluster.guests.push(Box::new(sender));
            ensure!(refused, "nobody refuses IPIP: is the module ipip loaded?");
            Ok(())
        },
        heal: |cluster| {
            cluster.guests.clear();
            Ok(())
        },
        spares: &[pods(A, B), pods(B, A), nodes(A, B), pods(A, C)],
        expected: &[
            says(A, Code::EncapsulationRefused, B, OUTBOUND, DECAPSULATION),
            says_itself(B, Code::ModuleMissing, Subject::Thing(Thing::Module, "ipip"))
                .going(INBOUND, DECAPSULATION)
                .telling(&["ipip is not loaded"]),
        ],
        // No probe goes by IPIP: what tells is the peer's answer, which a rule reads.
        counted: &[may_speak(A, B)],
        unlike: &[Code::RemoteTunnelDown, Code::EncapsulationLost],
        // A kernel sends an ICMP error a second: three make a verdict.
        limits: Limits { detect: Duration::from_secs(15), ..HARD },
        ..PLAIN
    },
];

/// VXLAN is cut in two on its way out; IPIP is not.
pub(super) const UNDERLAY_MTU_LOWERED: Fault = Fault {
    name: "underlay-mtu-lowered",
    about: "one node's NIC gets a smaller MTU than its tunnel needs",
    inject: |cluster| ip(cluster, B, "link set eth0 mtu 1400"),
    heal: |cluster| ip(cluster, B, "link set eth0 mtu 1500"),
    breaks: &[full_pods(A, B), full_pods(C, B)],
    spares: &[pods(A, B), pods(B, A), full_pods(A, C)],
    expected: &[
        says_itself(B, Code::TunnelMtuTooLarge, Subject::Tunnel),
        says(A, Code::MtuBlackhole, B, OUTBOUND, WIRE),
        says(C, Code::MtuBlackhole, B, OUTBOUND, WIRE),
    ],
    ..PLAIN
};

/// Each pair of which B is one end disagrees.
const fn mismatch(code: Code) -> [Expected; 4] {
    [
        says(A, code, B, BOTH, DECAPSULATION),
        says(C, code, B, BOTH, DECAPSULATION),
        says(B, code, A, BOTH, DECAPSULATION),
        says(B, code, C, BOTH, DECAPSULATION),
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
