//! VXLAN over IPv6, alone and beside IPv4: each node is a peer by each of its
//! addresses, and what breaks one family says nothing of the other.

use anyhow::{Context, Result, ensure};
use overlaywatch_core::catalog::Code;
use overlaywatch_core::finding::Thing;

use super::expected::{
    BOTH, DECAPSULATION, DELIVERY, ENCAPSULATION, Expected, INBOUND, LOCAL_STACK, OUTBOUND,
    Subject, WIRE, cannot_reach, counts, may_speak, misses, says, says_itself,
};
use super::quiet::watch;
use super::underlay::set_port;
use super::{A, B, C, Fault, LIVE, PLAIN, Shapes, ip};
use crate::netns::Netns;
use crate::topology::{Cluster, Shape, V6_DEVICE};
use crate::traffic::{Path, full_pods, nodes, pods, pods_v6};

/// In the cluster where nodes and pods have IPv6 alone.
const ALONE: Fault = Fault { shapes: Shapes::Only(Shape::FlannelV6), ..PLAIN };
/// In the one where they have both; a list names each node once, by IPv4.
const DUAL: Fault = Fault { shapes: Shapes::Only(Shape::FlannelDual), ..PLAIN };

const AROUND_B: &[Path] = &[pods(A, B), pods(B, A), pods(C, B)];
const BESIDE_B: &[Path] = &[pods(A, C), pods(C, A), nodes(A, B)];
const FROM_A: &[Path] = &[pods(A, B), pods(A, C)];
const BESIDE_A: &[Path] = &[pods(B, A), nodes(A, B), pods(B, C)];
/// What IPv4 carries all the while.
const OVER_IPV4: &[Path] = &[pods(A, B), pods(B, A), nodes(A, B), pods_v6(A, C)];

/// What a node that is well looks like, whichever families it has.
const WELL: &[Code] = &[
    Code::AgentSilent,
    Code::EncapsulationLost,
    Code::FdbMisdirected,
    Code::ForwardingOff,
    Code::HostSourceWithoutTunnelAddress,
    Code::MtuBlackhole,
    Code::RouteBypassesTunnel,
    Code::StaleVtepMac,
    Code::TunnelMtuTooLarge,
    Code::VtepLocalAddressWrong,
];

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "ipv6-nothing-wrong",
        about: "nodes and pods have IPv6 alone, and peers are known by the kernel alone",
        listed: false,
        spares: &[pods(A, B), pods(B, C), full_pods(A, B), full_pods(B, A), nodes(A, B)],
        unlike: WELL,
        limits: watch(30),
        ..ALONE
    },
    Fault {
        name: "ipv6-second-address",
        about: "one node's NIC gets a second address, which the kernel likes better for what it \
                sends, as a router advertises it",
        inject: |cluster| second_addresses(cluster, "add"),
        heal: |cluster| second_addresses(cluster, "del"),
        spares: &[pods(A, B), pods(B, A), full_pods(A, B)],
        unlike: WELL,
        limits: watch(30),
        ..ALONE
    },
    Fault {
        name: "ipv6-vxlan-port-blocked",
        about: "a firewall between two nodes drops the VXLAN port over IPv6, both ways",
        inject: |cluster| block_v6(cluster, &[(A, B), (B, A)]),
        heal: unblock,
        breaks: &[pods(A, B), pods(B, A)],
        spares: &[nodes(A, B), nodes(B, A), pods(A, C), pods(C, B)],
        expected: &[
            says(A, Code::EncapsulationLost, B, BOTH, WIRE),
            says(B, Code::EncapsulationLost, A, BOTH, WIRE),
        ],
        unlike: &[Code::LocalOutputDrop, Code::RemoteTunnelDown, Code::UnexplainedLoss],
        ..ALONE
    },
    Fault {
        name: "ipv6-vxlan-port-blocked-one-way",
        about: "a firewall between two nodes drops the VXLAN port over IPv6, one way",
        inject: |cluster| block_v6(cluster, &[(A, B)]),
        heal: unblock,
        breaks: &[pods(A, B)],
        spares: &[pods(B, A), nodes(A, B)],
        expected: &[
            says(A, Code::EncapsulationLost, B, OUTBOUND, WIRE),
            says(B, Code::EncapsulationLost, A, INBOUND, WIRE),
        ],
        ..ALONE
    },
    Fault {
        name: "ipv6-mid-path-mtu",
        about: "the path between two nodes silently drops IPv6 packets over 1450 bytes",
        inject: |cluster| {
            let (a, b) = (cluster.node(A)?.underlay_v6(), cluster.node(B)?.underlay_v6());
            // The header itself, of 40 bytes, is not part of that length.
            let long = |from, to| format!("ip6 saddr {from} ip6 daddr {to} ip6 length > 1410 drop");
            block(cluster, &[long(a, b), long(b, a)])
        },
        heal: unblock,
        breaks: &[full_pods(A, B), full_pods(B, A)],
        spares: &[pods(A, B), pods(B, A), full_pods(A, C)],
        expected: &[
            says(A, Code::MtuBlackhole, B, BOTH, WIRE),
            says(B, Code::MtuBlackhole, A, BOTH, WIRE),
        ],
        unlike: &[Code::TunnelMtuTooLarge, Code::EncapsulationLost],
        ..ALONE
    },
    Fault {
        name: "ipv6-underlay-mtu-lowered",
        about: "one node's NIC gets an MTU that would do for its tunnel over IPv4, which takes 50 \
                bytes; over IPv6 it takes 70",
        inject: |cluster| ip(cluster, B, "link set eth0 mtu 1490"),
        heal: |cluster| ip(cluster, B, "link set eth0 mtu 1500"),
        // Not what its own pods send: they are told, and send smaller ones.
        breaks: &[full_pods(A, B), full_pods(C, B)],
        spares: &[pods(A, B), pods(B, A), full_pods(A, C)],
        expected: &[
            says_itself(B, Code::TunnelMtuTooLarge, Subject::Tunnel).telling(&["70"]),
            says(A, Code::MtuBlackhole, B, BOTH, WIRE),
            says(C, Code::MtuBlackhole, B, BOTH, WIRE),
        ],
        // No router cuts IPv6 packets in pieces, and the node itself cuts no outer ones.
        counted: &[counts(B, A, BOTH, ENCAPSULATION), counts(B, C, BOTH, ENCAPSULATION)],
        unlike: &[Code::EncapsulationLost, Code::LocalOutputDrop],
        ..ALONE
    },
    Fault {
        name: "ipv6-output-drop-inet",
        about: "a node's own nftables drop VXLAN over IPv6 in their output, in a table of both families",
        inject: |cluster| {
            let rule = "meta nfproto ipv6 udp dport 8472 counter drop";
            nft(&cluster.node(A)?.netns, &on_output("inet", rule))
        },
        heal: |cluster| nft(&cluster.node(A)?.netns, "delete table inet site\n"),
        breaks: FROM_A,
        spares: BESIDE_A,
        expected: &[
            filtered(A, "inet site out").telling(&["hook output", "udp dport", "NETFILTER_DROP"]),
            misses(B, A, ENCAPSULATION),
            misses(C, A, ENCAPSULATION),
        ],
        counted: &[counts(A, B, OUTBOUND, ENCAPSULATION), counts(A, C, OUTBOUND, ENCAPSULATION)],
        ..ALONE
    },
    Fault {
        name: "ipv6-output-drop-ip6tables",
        about: "a node's own ip6tables drop VXLAN to one peer in their output",
        inject: |cluster| ip6tables(cluster, "-A"),
        heal: |cluster| ip6tables(cluster, "-D"),
        breaks: &[pods(A, B)],
        spares: &[pods(B, A), nodes(A, B), pods(A, C)],
        expected: &[
            filtered(A, "ip6 filter OUTPUT").telling(&["hook output", "udp dport", "fd00:10::12"]),
            misses(B, A, ENCAPSULATION),
        ],
        counted: &[counts(A, B, OUTBOUND, ENCAPSULATION)],
        ..ALONE
    },
    Fault {
        name: "ipv6-vni-mismatch",
        about: "one node's tunnel device over IPv6 uses another VNI",
        inject: |cluster| cluster.remake_tunnel(B, |vtep| vtep.vni += 1),
        heal: |cluster| cluster.remake_tunnel(B, |_| {}),
        breaks: AROUND_B,
        spares: BESIDE_B,
        expected: &[
            says(A, Code::VniMismatch, B, BOTH, DECAPSULATION),
            says(C, Code::VniMismatch, B, BOTH, DECAPSULATION),
            says(B, Code::VniMismatch, A, BOTH, DECAPSULATION),
            says(B, Code::VniMismatch, C, BOTH, DECAPSULATION),
        ],
        unlike: &[Code::VxlanPortMismatch],
        ..ALONE
    },
    Fault {
        name: "ipv6-tunnel-deleted",
        about: "one node's tunnel device over IPv6 is gone",
        inject: |cluster| ip(cluster, B, &format!("link del {V6_DEVICE}")),
        heal: |cluster| cluster.make_tunnel(B, |_| {}),
        breaks: AROUND_B,
        spares: BESIDE_B,
        expected: &[
            says_itself(B, Code::TunnelMissing, Subject::Tunnel),
            says(A, Code::EncapsulationRefused, B, OUTBOUND, DECAPSULATION)
                .telling(&["type 1, code 4"]),
            says(C, Code::EncapsulationRefused, B, OUTBOUND, DECAPSULATION),
        ],
        counted: &[may_speak(B, A), may_speak(B, C)],
        unlike: &[Code::TunnelDown],
        ..ALONE
    },
    Fault {
        name: "ipv6-fdb-missing",
        about: "one node lost the forwarding entry of a peer's VTEP over IPv6",
        inject: |cluster| cluster.lose_forwarding_entry(A, B),
        heal: |cluster| cluster.program(A),
        breaks: &[pods(A, B)],
        spares: &[pods(B, A), pods(A, C), pods(C, B), nodes(A, B)],
        expected: &[
            says(A, Code::FdbMissing, B, OUTBOUND, ENCAPSULATION),
            misses(B, A, ENCAPSULATION),
        ],
        unlike: &[Code::StaleVtepMac, Code::VtepNeighbourMissing, Code::FdbMisdirected],
        ..ALONE
    },
    Fault {
        name: "ipv6-route-missing",
        about: "one node lost the IPv6 route to a peer's pods",
        inject: |cluster| {
            let network = cluster.shape.pod_network(cluster.node(B)?);
            ip(cluster, A, &format!("route del {network}"))
        },
        heal: |cluster| cluster.program(A),
        breaks: &[pods(A, B)],
        spares: &[pods(B, A), pods(A, C), pods(C, B), nodes(A, B)],
        expected: &[
            says(A, Code::RouteMissing, B, OUTBOUND, LOCAL_STACK),
            misses(B, A, LOCAL_STACK),
        ],
        unlike: &[Code::RouteBypassesTunnel, Code::RouteBlackhole],
        ..ALONE
    },
    Fault {
        name: "ipv6-blackhole",
        about: "a leftover blackhole covers half of a peer's IPv6 pods on one node",
        inject: |cluster| {
            let half = cluster.shape.pod_network_half(cluster.node(B)?);
            ip(cluster, A, &format!("route add blackhole {half} proto 80"))
        },
        heal: |cluster| {
            let half = cluster.shape.pod_network_half(cluster.node(B)?);
            ip(cluster, A, &format!("route del blackhole {half} proto 80"))
        },
        breaks: &[pods(A, B)],
        spares: &[pods(B, A), pods(A, C), pods(C, B), nodes(A, B)],
        expected: &[
            says(A, Code::RouteBlackhole, B, OUTBOUND, LOCAL_STACK),
            misses(B, A, LOCAL_STACK),
        ],
        unlike: &[Code::RouteMissing],
        ..ALONE
    },
    Fault {
        name: "ipv6-forwarding-off",
        about: "one node's kernel forwards no IPv6 packets any more",
        inject: |cluster| cluster.node(B)?.netns.set("ipv6/conf/all/forwarding", "0"),
        heal: |cluster| cluster.node(B)?.netns.set("ipv6/conf/all/forwarding", "1"),
        breaks: &[pods(A, B), pods(B, C)],
        spares: &[pods(A, C), pods(C, A), nodes(A, B)],
        expected: &[says_itself(B, Code::ForwardingOff, Subject::Node)
            .telling(&["net.ipv6.conf.all.forwarding"])],
        counted: &[counts(B, A, INBOUND, DELIVERY), counts(B, C, OUTBOUND, LOCAL_STACK)],
        unlike: &[Code::RouteMissing],
        limits: LIVE,
        ..ALONE
    },
    Fault {
        name: "dual-nothing-wrong",
        about: "nodes and pods have both families, and a list names each node once, by IPv4",
        spares: &[pods(A, B), pods_v6(A, B), pods_v6(B, C), full_pods(A, B), nodes(A, B)],
        unlike: WELL,
        limits: watch(30),
        ..DUAL
    },
    Fault {
        name: "dual-nothing-wrong-unlisted",
        about: "nodes and pods have both families, and peers are known by the kernel alone",
        listed: false,
        spares: &[pods(A, B), pods_v6(A, B), pods_v6(B, C), full_pods(A, B), nodes(A, B)],
        unlike: WELL,
        limits: watch(30),
        ..DUAL
    },
    Fault {
        name: "dual-ipv6-blocked",
        about: "of two families a firewall between two nodes drops VXLAN over IPv6 alone",
        inject: |cluster| block_v6(cluster, &[(A, B), (B, A)]),
        heal: unblock,
        breaks: &[pods_v6(A, B), pods_v6(B, A)],
        spares: OVER_IPV4,
        expected: &[
            says(A, Code::EncapsulationLost, B, BOTH, WIRE).over_ipv6(),
            says(B, Code::EncapsulationLost, A, BOTH, WIRE).over_ipv6(),
        ],
        unlike: &[Code::OverlayLoss, Code::UnexplainedLoss],
        ..DUAL
    },
    Fault {
        name: "dual-ipv4-blocked",
        about: "of two families a firewall between two nodes drops VXLAN over IPv4 alone",
        inject: |cluster| block_v4(cluster, &[(A, B), (B, A)]),
        heal: unblock,
        breaks: &[pods(A, B), pods(B, A)],
        spares: &[pods_v6(A, B), pods_v6(B, A), nodes(A, B), pods(A, C)],
        expected: &[
            says(A, Code::EncapsulationLost, B, BOTH, WIRE),
            says(B, Code::EncapsulationLost, A, BOTH, WIRE),
        ],
        unlike: &[Code::OverlayLoss, Code::UnexplainedLoss],
        ..DUAL
    },
    Fault {
        name: "dual-ipv6-output-drop",
        about: "of two families a node's own nftables drop VXLAN over IPv6 alone, by its own address",
        inject: |cluster| {
            let own = cluster.node(A)?.underlay_v6();
            let rule = format!("ip6 saddr {own} udp dport 8472 counter drop");
            nft(&cluster.node(A)?.netns, &on_output("ip6", &rule))
        },
        heal: |cluster| nft(&cluster.node(A)?.netns, "delete table ip6 site\n"),
        breaks: &[pods_v6(A, B), pods_v6(A, C)],
        spares: &[pods(A, B), pods(B, A), pods_v6(B, A), nodes(A, B)],
        expected: &[
            filtered(A, "ip6 site out").telling(&["hook output", "ip6 saddr fd00:10::11"]),
            misses(B, A, ENCAPSULATION).over_ipv6(),
            misses(C, A, ENCAPSULATION).over_ipv6(),
        ],
        counted: &[
            counts(A, B, OUTBOUND, ENCAPSULATION).over_ipv6(),
            counts(A, C, OUTBOUND, ENCAPSULATION).over_ipv6(),
        ],
        ..DUAL
    },
    Fault {
        name: "dual-ipv6-tunnel-deleted",
        about: "of two families one node's tunnel device over IPv6 is gone",
        inject: |cluster| ip(cluster, B, &format!("link del {V6_DEVICE}")),
        heal: |cluster| cluster.make_tunnel_v6(B),
        breaks: &[pods_v6(A, B), pods_v6(B, A), pods_v6(C, B)],
        spares: OVER_IPV4,
        expected: &[
            says_itself(B, Code::TunnelMissing, Subject::Device(V6_DEVICE)),
            says(A, Code::EncapsulationRefused, B, OUTBOUND, DECAPSULATION)
                .telling(&["type 1, code 4"])
                .over_ipv6(),
            says(C, Code::EncapsulationRefused, B, OUTBOUND, DECAPSULATION).over_ipv6(),
        ],
        counted: &[may_speak(B, A).over_ipv6(), may_speak(B, C).over_ipv6()],
        unlike: &[Code::TunnelDown],
        ..DUAL
    },
    Fault {
        name: "dual-ipv6-route-missing",
        about: "of two families one node lost the IPv6 route to a peer's pods",
        inject: |cluster| {
            let overlay = cluster.node(B)?.overlay_v6();
            ip(cluster, A, &format!("route del {overlay}/64 dev {V6_DEVICE}"))
        },
        heal: |cluster| cluster.program(A),
        breaks: &[pods_v6(A, B)],
        spares: &[pods_v6(B, A), pods(A, B), pods(B, A), nodes(A, B)],
        expected: &[
            says(A, Code::RouteMissing, B, OUTBOUND, LOCAL_STACK).over_ipv6(),
            misses(B, A, LOCAL_STACK).over_ipv6(),
        ],
        unlike: &[Code::RouteBypassesTunnel, Code::RouteBlackhole],
        ..DUAL
    },
    Fault {
        name: "dual-node-dead",
        about: "of two nodes with two families one is off: by two addresses, it is one node",
        nodes: 2,
        inject: |cluster| {
            set_port(cluster, B, "down")?;
            cluster.kill_agent(B)
        },
        heal: |cluster| {
            set_port(cluster, B, "up")?;
            cluster.start_agent(B)
        },
        breaks: &[pods(A, B), pods_v6(A, B)],
        expected: &[cannot_reach(A, B), cannot_reach(A, B).over_ipv6()],
        unlike: &[Code::NodeIsolated],
        ..DUAL
    },
];

/// A node names a chain in its own output.
const fn filtered(node: usize, chain: &'static str) -> Expected {
    says_itself(node, Code::EncapsulationFiltered, Subject::Thing(Thing::Chain, chain))
        .going(OUTBOUND, ENCAPSULATION)
}

/// Drops the tunnel's packets over IPv6 on these ways, between two nodes each.
fn block_v6(cluster: &Cluster, ways: &[(usize, usize)]) -> Result<()> {
    let port = cluster.shape.port();
    let rule = |&(from, to): &(usize, usize)| {
        let (from, to) = (cluster.node(from)?.underlay_v6(), cluster.node(to)?.underlay_v6());
        Ok(format!("ip6 saddr {from} ip6 daddr {to} udp dport {port} drop"))
    };
    block(cluster, &ways.iter().map(rule).collect::<Result<Vec<_>>>()?)
}

/// The same over IPv4.
fn block_v4(cluster: &Cluster, ways: &[(usize, usize)]) -> Result<()> {
    let port = cluster.shape.port();
    let rule = |&(from, to): &(usize, usize)| {
        let (from, to) = (cluster.node(from)?.underlay(), cluster.node(to)?.underlay());
        Ok(format!("ip saddr {from} ip daddr {to} udp dport {port} drop"))
    };
    block(cluster, &ways.iter().map(rule).collect::<Result<Vec<_>>>()?)
}

/// Rules between the ports of the switch, where no node sees them.
fn block(cluster: &Cluster, rules: &[String]) -> Result<()> {
    let chain = "type filter hook forward priority 0;";
    let rules = rules.join("\n");
    nft(
        &cluster.switch,
        &format!("table bridge between {{ chain drops {{ {chain}\n{rules}\n}}\n}}\n"),
    )
}

fn unblock(cluster: &mut Cluster) -> Result<()> {
    nft(&cluster.switch, "delete table bridge between\n")
}

/// A table with one rule in the output.
fn on_output(family: &str, rule: &str) -> String {
    format!(
        "table {family} site {{ chain out {{ type filter hook output priority 0;\n{rule}\n}}\n}}\n"
    )
}

/// Gives lines to nft(8).
fn nft(netns: &Netns, lines: &str) -> Result<()> {
    let output = netns.command("nft").arg(lines).output().context("cannot run nft")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft refused `{lines}`: {}", said.trim());
    Ok(())
}

/// A rule of ip6tables on A about what goes to B's tunnel.
fn ip6tables(cluster: &Cluster, verb: &str) -> Result<()> {
    let (to, port) = (cluster.node(B)?.underlay_v6(), cluster.shape.port());
    let rule = format!("-w {verb} OUTPUT -d {to} -p udp --dport {port} -j DROP");
    let mut command = cluster.node(A)?.netns.command("ip6tables-nft");
    let output = command
        .args(rule.split(' '))
        .output()
        .context("cannot run ip6tables-nft: install iptables")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip6tables-nft {rule}: {}", said.trim());
    Ok(())
}

/// Of one prefix the kernel takes the address that was added last.
fn second_addresses(cluster: &Cluster, verb: &str) -> Result<()> {
    let nodad = if verb == "add" { " nodad" } else { "" };
    ip(cluster, A, &format!("addr {verb} fd00:10::a:b:c:11/64 dev eth0{nodad}"))
}
