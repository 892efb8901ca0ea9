//! Underlays that are smaller than an Ethernet, as clouds have them, and underlays
//! that are tunnels themselves; and a kernel of a cloud that lacks a module.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use overlaywatch_core::catalog::Code;
use overlaywatch_core::finding::Thing;

use super::expected::{DECAPSULATION, NO_DIRECTION, NO_HOP, OUTBOUND, Subject, says, says_itself};
use super::ipip::IN_IPIP;
use super::quiet::watch;
use super::underlay::middle_passes;
use super::{A, B, C, Fault, PLAIN, Shapes, addresses, ip};
use crate::filter::{self, Drops, Place};
use crate::interrupt;
use crate::need::Need;
use crate::topology::{Cluster, Shape};
use crate::traffic::{nodes, pods};
use crate::wireguard::{self, Key, PAIRS, PORT, Remote};

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "underlay-mtu-1450",
        about: "all nodes' NICs are of a network with 1450 bytes, and tunnels take 1480",
        inject: |cluster| set_mtu(cluster, "eth0", 1450),
        heal: |cluster| set_mtu(cluster, "eth0", 1500),
        spares: &[pods(A, B), pods(B, C), nodes(A, B)],
        expected: &[
            says_itself(A, Code::TunnelMtuTooLarge, Subject::Tunnel),
            says_itself(B, Code::TunnelMtuTooLarge, Subject::Tunnel),
            says_itself(C, Code::TunnelMtuTooLarge, Subject::Tunnel),
        ],
        unlike: &[Code::EncapsulationLost, Code::UnderlayLoss],
        ..IN_IPIP
    },
    Fault {
        name: "underlay-mtu-1450-fits",
        about: "all nodes' NICs are of a network with 1450 bytes, and tunnels take 1430",
        inject: |cluster| {
            set_mtu(cluster, "tunl0", 1430)?;
            set_mtu(cluster, "eth0", 1450)
        },
        heal: |cluster| {
            set_mtu(cluster, "eth0", 1500)?;
            set_mtu(cluster, "tunl0", 1480)
        },
        spares: &[pods(A, B), pods(B, C), nodes(A, B)],
        unlike: &[Code::TunnelMtuTooLarge, Code::MtuBlackhole],
        limits: watch(30),
        ..IN_IPIP
    },
    Fault {
        name: "wireguard-beneath",
        about: "two nodes reach each other through WireGuard, below the tunnel",
        inject: |cluster| go_beneath(cluster, PAIRS[1].1),
        heal: go_above,
        spares: &[pods(A, B), pods(B, A), nodes(A, B), pods(A, C)],
        unlike: &[Code::RouteBypassesTunnel, Code::LeftoverRoute, Code::MtuBlackhole],
        limits: watch(40),
        ..IN_IPIP
    },
    Fault {
        name: "wireguard-key-mismatch",
        about: "two nodes reach each other through WireGuard, and one has the wrong key of the \
                other",
        inject: |cluster| go_beneath(cluster, [0x17; 32]),
        heal: go_above,
        breaks: &[pods(A, B), pods(B, A), nodes(A, B)],
        spares: &[pods(A, C), pods(C, B)],
        expected: CUT_OFF,
        unlike: &[Code::EncapsulationLost, Code::AgentSilent],
        ..IN_IPIP
    },
    Fault {
        name: "wireguard-port-blocked",
        about: "a firewall between two nodes blocks the WireGuard that they reach each other \
                through",
        inject: |cluster| {
            go_beneath(cluster, PAIRS[1].1)?;
            interrupt::sleep(Duration::from_secs(5))?;
            let drops = Drops { udp_to: Some(PORT), ..Drops::default() };
            filter::drop(&cluster.switch, Place::Middle, &[drops])
        },
        heal: |cluster| {
            middle_passes(cluster)?;
            go_above(cluster)
        },
        breaks: &[pods(A, B), pods(B, A), nodes(A, B)],
        spares: &[pods(A, C), pods(C, B)],
        expected: CUT_OFF,
        unlike: &[Code::EncapsulationLost, Code::AgentSilent],
        ..IN_IPIP
    },
    Fault {
        name: "module-missing-vxlan",
        about: "one node came back with a kernel that has no VXLAN, which all others use",
        shapes: Shapes::Only(Shape::Flannel),
        needs: &[Need::Machine],
        inject: |cluster| {
            cluster.kill_agent(B)?;
            ip(cluster, B, &format!("link del {}", cluster.shape.device()))?;
            let loaded = fs::read_to_string("/proc/modules")?;
            let others = loaded.lines().filter(|line| !line.starts_with("vxlan "));
            cluster.veil(
                B,
                "/proc/modules",
                &others.map(|line| format!("{line}\n")).collect::<String>(),
            )?;
            cluster.write(B, &modules()?, "kernel/net/ipv4/ipip.ko:\n")?;
            cluster.run_as(B, "flanneld")?;
            cluster.start_agent(B)
        },
        heal: |cluster| {
            cluster.kill_agent(B)?;
            cluster.guests.clear();
            cluster.unveil(B)?;
            cluster.remove(B, &modules()?)?;
            cluster.make_tunnel(B, |_| {})?;
            cluster.start_agent(B)
        },
        breaks: &[pods(A, B), pods(B, A)],
        spares: &[pods(A, C), nodes(A, B)],
        expected: &[
            says_itself(B, Code::ModuleMissing, Subject::Thing(Thing::Module, "vxlan"))
                .telling(&["vxlan is not loaded"]),
            says(A, Code::EncapsulationRefused, B, OUTBOUND, DECAPSULATION),
            says(C, Code::EncapsulationRefused, B, OUTBOUND, DECAPSULATION),
        ],
        unlike: &[Code::EncapsulationLost, Code::VxlanPortMismatch],
        limits: super::LIVE,
        ..PLAIN
    },
];

/// Nothing comes back, so that nobody can tell where it ended.
const CUT_OFF: &[super::Expected] = &[
    says(A, Code::PeerUnreachable, B, NO_DIRECTION, NO_HOP),
    says(B, Code::PeerUnreachable, A, NO_DIRECTION, NO_HOP),
];

fn set_mtu(cluster: &Cluster, device: &str, mtu: u16) -> Result<()> {
    let lines = format!("link set {device} mtu {mtu}\n");
    cluster.nodes.iter().try_for_each(|node| node.netns.ip(&lines))
}

/// Where a node's index of loadable modules is, below its root.
fn modules() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("lib/modules/{}/modules.dep", release.trim()))
}

/// Lets A and B reach each other through WireGuard, whose own packets go between
/// further addresses of theirs. `told` is what A takes for B's key.
fn go_beneath(cluster: &mut Cluster, told: Key) -> Result<()> {
    let (a, b) = addresses(cluster, A, B)?;
    let beneath = ["172.20.0.1", "172.20.0.2"].map(str::parse);
    let [own, others] = beneath;
    let (own, others) = (own?, others?);
    let [(secret_a, key_a), (secret_b, _)] = PAIRS;
    for (node, address, secret, remote) in [
        (A, own, secret_a, Remote { key: told, endpoint: others, behind: b }),
        (B, others, secret_b, Remote { key: key_a, endpoint: own, behind: a }),
    ] {
        ip(
            cluster,
            node,
            &format!("link add wg0 mtu 1420 type wireguard\naddr add {address}/24 dev eth0"),
        )?;
        let netns = &cluster.node(node)?.netns;
        wireguard::configure(netns, "wg0", secret, remote)?;
        // An outer packet of 1420 bytes.
        netns.ip("link set wg0 up\nlink set tunl0 mtu 1400\n")?;
    }
    for (node, own, peer) in [(A, a, b), (B, b, a)] {
        ip(cluster, node, &format!("route add {peer}/32 dev wg0 src {own}"))?;
    }
    Ok(())
}

fn go_above(cluster: &mut Cluster) -> Result<()> {
    for (node, address) in [(A, "172.20.0.1"), (B, "172.20.0.2")] {
        let lines =
            format!("link del wg0\naddr del {address}/24 dev eth0\nlink set tunl0 mtu 1480");
        ip(cluster, node, &lines)?;
    }
    Ok(())
}
