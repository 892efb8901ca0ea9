//! Faults of IPIP, in Calico's shape of it as a rule. They need a kernel that has IPIP:
//! where this machine's has not, `cargo xtask lab vm` boots one.

use overlaywatch_core::catalog::Code;

use super::expected::{
    BOTH, DECAPSULATION, ENCAPSULATION, INBOUND, LOCAL_STACK, OUT_OR_BOTH, OUTBOUND, Subject,
    WHOLE_WAY, WIRE, may_speak, misses, says, says_itself,
};
use super::firewall::{
    LOCAL_OUTPUT_DROP, REMOTE_INPUT_DROP, REMOTE_INPUT_DROP_UNCOUNTED, filtered_in, filtered_out,
};
use super::quiet::watch;
use super::tunnel::UNDERLAY_MTU_LOWERED;
use super::underlay::{block_tunnel, middle_passes};
use super::{A, B, C, D, Fault, PLAIN, Shapes, ip};
use crate::topology::Shape;
use crate::traffic::{nodes, pods};

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "underlay-proto4-blocked",
        about: "a firewall between two nodes drops IP protocol 4, both ways",
        shapes: Shapes::These(&[Shape::CalicoIpip, Shape::FlannelIpip, Shape::KubeRouter]),
        inject: |cluster| block_tunnel(cluster, true),
        heal: middle_passes,
        breaks: &[pods(A, B), pods(B, A)],
        spares: &[nodes(A, B), nodes(B, A), pods(A, C), pods(C, B)],
        expected: &[
            says(A, Code::EncapsulationLost, B, BOTH, WIRE),
            says(B, Code::EncapsulationLost, A, BOTH, WIRE),
        ],
        unlike: &[Code::LocalOutputDrop, Code::RemoteTunnelDown, Code::UnexplainedLoss],
        ..IN_IPIP
    },
    Fault {
        name: "underlay-proto4-blocked-one-way",
        about: "a firewall between two nodes drops IP protocol 4, one way",
        inject: |cluster| block_tunnel(cluster, false),
        heal: middle_passes,
        breaks: &[pods(A, B)],
        spares: &[pods(B, A), nodes(A, B)],
        expected: &[
            says(A, Code::EncapsulationLost, B, OUTBOUND, WIRE),
            says(B, Code::EncapsulationLost, A, INBOUND, WIRE),
        ],
        ..IN_IPIP
    },
    Fault {
        name: "remote-input-drop-proto4",
        about: "a node's firewall drops IP protocol 4 in its input",
        shapes: IPIP,
        expected: &[
            says(A, Code::UnexplainedLoss, B, OUTBOUND, DECAPSULATION),
            says(C, Code::UnexplainedLoss, B, OUTBOUND, DECAPSULATION),
            filtered_in(B).telling(&["hook input", "ip protocol ipencap", "NETFILTER_DROP"]),
        ],
        ..REMOTE_INPUT_DROP
    },
    Fault {
        name: "remote-input-drop-proto4-uncounted",
        about: "a node's firewall drops IP protocol 4 in its input, and no agent has eBPF: the \
                rule's own counter tells",
        shapes: IPIP,
        expected: &[
            says(A, Code::EncapsulationLost, B, OUTBOUND, WHOLE_WAY),
            says(C, Code::EncapsulationLost, B, OUTBOUND, WHOLE_WAY),
            filtered_in(B).telling(&["hook input", "ip protocol ipencap", "its counter grew by"]),
        ],
        ..REMOTE_INPUT_DROP_UNCOUNTED
    },
    Fault {
        name: "local-output-drop-proto4",
        about: "a node's firewall drops IP protocol 4 in its output",
        shapes: IPIP,
        expected: &[
            filtered_out(A).telling(&[
                "hook output",
                "ip protocol ipencap",
                "handle",
                "NETFILTER_DROP",
            ]),
            misses(B, A, ENCAPSULATION),
            misses(C, A, ENCAPSULATION),
        ],
        ..LOCAL_OUTPUT_DROP
    },
    Fault {
        name: "tunl0-absent",
        about: "one node's tunl0 is as if the module were loaded anew: off, without an address",
        // The kernel's own device cannot be deleted (ip_tunnel_dellink, net/ipv4/ip_tunnel.c).
        inject: |cluster| ip(cluster, B, "addr flush dev tunl0\nlink set tunl0 down"),
        heal: |cluster| cluster.make_tunnel(B, |_| {}),
        breaks: &[pods(A, B), pods(B, A), pods(C, B)],
        spares: &[pods(A, C), pods(C, A), nodes(A, B)],
        expected: &[
            says_itself(B, Code::TunnelMissing, Subject::Tunnel),
            // B has nothing to send through: only one direction can be told.
            says(A, Code::EncapsulationRefused, B, OUTBOUND, DECAPSULATION)
                .telling(&["type 3, code 3"]),
            says(C, Code::EncapsulationRefused, B, OUTBOUND, DECAPSULATION),
        ],
        counted: &[may_speak(B, A), may_speak(B, C)],
        unlike: &[Code::TunnelDown, Code::ModuleMissing],
        ..IN_IPIP
    },
    Fault {
        name: "underlay-mtu-lowered-proto4",
        about: "one node's NIC gets a smaller MTU than tunl0 needs, whose packets may not be cut",
        shapes: IPIP,
        expected: &[
            says_itself(B, Code::TunnelMtuTooLarge, Subject::Tunnel),
            // B's own full-sized packets do not come as far as its NIC.
            says(A, Code::MtuBlackhole, B, OUT_OR_BOTH, WIRE),
            says(C, Code::MtuBlackhole, B, OUT_OR_BOTH, WIRE),
        ],
        ..UNDERLAY_MTU_LOWERED
    },
    Fault {
        name: "route-by-a-third-node",
        about: "one node's route to another's pods leads through a third, which passes them on",
        inject: |cluster| {
            let (b, c) = (cluster.node(B)?, cluster.node(C)?);
            let (network, gateway) = (cluster.shape.pod_network(b), cluster.shape.gateway(c));
            let route = format!("{network} via {gateway} dev tunl0 proto bird onlink");
            ip(cluster, A, &format!("route replace {route}"))
        },
        heal: |cluster| cluster.program(A),
        spares: &[pods(A, B), pods(B, A), pods(A, C), pods(C, B)],
        unlike: &[Code::RouteMissing, Code::RouteBypassesTunnel, Code::EncapsulationLost],
        limits: watch(20),
        ..IN_IPIP
    },
    Fault {
        name: "two-faults-two-pairs-proto4",
        about: "IP protocol 4 is blocked between one pair; another node lost a route to a peer's \
                pods",
        nodes: 4,
        inject: |cluster| {
            block_tunnel(cluster, true)?;
            let network = cluster.shape.pod_network(cluster.node(D)?);
            ip(cluster, C, &format!("route del {network}"))
        },
        heal: |cluster| {
            middle_passes(cluster)?;
            cluster.program(C)
        },
        breaks: &[pods(A, B), pods(B, A), pods(C, D)],
        spares: &[nodes(A, B), pods(D, C), pods(A, C), pods(B, D)],
        expected: &[
            says(A, Code::EncapsulationLost, B, BOTH, WIRE),
            says(B, Code::EncapsulationLost, A, BOTH, WIRE),
            says(C, Code::RouteMissing, D, OUTBOUND, LOCAL_STACK),
            misses(D, C, LOCAL_STACK),
        ],
        ..IN_IPIP
    },
];

/// In Calico's IPIP alone.
pub(super) const IN_IPIP: Fault = Fault { shapes: IPIP, ..PLAIN };

const IPIP: Shapes = Shapes::Only(Shape::CalicoIpip);
