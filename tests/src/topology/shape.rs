//! The shapes: what flannel's VXLAN backend and Calico's program into a node,
//! line by line for ip(8) and bridge(8).

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{Node, UNDERLAY_MTU};
use crate::module;

/// Bytes that VXLAN adds over IPv4: 14 inner Ethernet + 8 VXLAN + 8 UDP + 20 IP.
const VXLAN_OVERHEAD: u16 = 50;
/// Bytes that IPIP adds: an IP header.
const IPIP_OVERHEAD: u16 = 20;
/// The address that stands for the node in every Calico pod (Felix answers
/// for it through proxy ARP).
const CALICO_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Whose overlay it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// flannel's VXLAN: flannel.1, VNI 1, UDP 8472, pods behind cni0.
    Flannel,
    /// Calico's VXLAN: vxlan.calico, VNI 4096, UDP 4789, pods behind cali* devices.
    CalicoVxlan,
    /// Calico's IPIP: tunl0, IP protocol 4, routes by bird, pods behind cali* devices.
    CalicoIpip,
}

/// A VXLAN tunnel endpoint.
#[derive(Clone, Debug)]
pub struct Vtep {
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Outer source address.
    pub local: Ipv4Addr,
    /// The device's own address.
    pub address: Ipv4Addr,
    /// The device's MAC.
    pub mac: String,
}

impl Shape {
    /// Its name on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flannel => "flannel",
            Self::CalicoVxlan => "calico-vxlan",
            Self::CalicoIpip => "calico-ipip",
        }
    }

    /// The tunnel device's name.
    #[must_use]
    pub const fn device(self) -> &'static str {
        match self {
            Self::Flannel => "flannel.1",
            Self::CalicoVxlan => "vxlan.calico",
            Self::CalicoIpip => "tunl0",
        }
    }

    /// Whether its encapsulation is VXLAN; else it is IPIP.
    #[must_use]
    pub const fn is_vxlan(self) -> bool {
        match self {
            Self::Flannel | Self::CalicoVxlan => true,
            Self::CalicoIpip => false,
        }
    }

    /// Its encapsulation in words.
    #[must_use]
    pub fn encapsulation(self) -> String {
        if self.is_vxlan() {
            format!("VNI {}, UDP {}", self.vni(), self.port())
        } else {
            "IP protocol 4".to_owned()
        }
    }

    /// Fails unless the running kernel can have it. Loads nothing.
    ///
    /// # Errors
    /// Says what the kernel lacks, and what to do.
    pub fn ensure_possible(self) -> Result<()> {
        ensure!(
            self.is_vxlan() || module::is_there("ipip"),
            "this kernel has no IPIP: `cargo xtask lab vm` boots one that has"
        );
        Ok(())
    }

    /// The UDP port of the encapsulation; 0 for IPIP, which has none.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Flannel => 8472,
            Self::CalicoVxlan => 4789,
            Self::CalicoIpip => 0,
        }
    }

    /// The network identifier; 0 for IPIP, which has none.
    #[must_use]
    pub const fn vni(self) -> u32 {
        match self {
            Self::Flannel => 1,
            Self::CalicoVxlan => 4096,
            Self::CalicoIpip => 0,
        }
    }

    /// MTU of tunnel and pods, bytes.
    #[must_use]
    pub const fn mtu(self) -> u16 {
        UNDERLAY_MTU - if self.is_vxlan() { VXLAN_OVERHEAD } else { IPIP_OVERHEAD }
    }

    /// Prefix length of a node's pod network: flannel gives each node a /24,
    /// Calico's IPAM gives blocks of /26.
    const fn pod_prefix(self) -> u8 {
        match self {
            Self::Flannel => 24,
            Self::CalicoVxlan | Self::CalicoIpip => 26,
        }
    }

    /// Routing protocol of the CNI's routes: flannel's go in as boot (3),
    /// Felix marks its own with 80, bird with 12.
    const fn route_protocol(self) -> u8 {
        match self {
            Self::Flannel => 3,
            Self::CalicoVxlan => 80,
            Self::CalicoIpip => 12,
        }
    }

    /// The pod network of a node.
    #[must_use]
    pub fn pod_network(self, node: &Node) -> String {
        format!("{}/{}", node.overlay(), self.pod_prefix())
    }

    /// A part of a node's pod network that holds its tunnel address and its pod.
    #[must_use]
    pub fn pod_network_half(self, node: &Node) -> String {
        format!("{}/{}", node.overlay(), self.pod_prefix() + 1)
    }

    /// Makes the tunnel device. The kernel itself makes tunl0 in each namespace
    /// (net/ipv4/ipip.c) once another one had it load the module.
    pub(super) fn device_lines(self, vtep: &Vtep) -> String {
        if !self.is_vxlan() {
            let (device, mtu, address) = (self.device(), self.mtu(), vtep.address);
            return format!(
                "link add loads-ipip type ipip remote 192.0.2.1\n\
                 link del loads-ipip\n\
                 link set {device} mtu {mtu} up\n\
                 addr add {address}/32 dev {device}\n"
            );
        }
        self.lines_of(&format!("id {}", vtep.vni), vtep)
    }

    /// Makes a VXLAN device that takes the network identifier and the peer of
    /// each packet from its metadata.
    pub(super) fn external_lines(self, vtep: &Vtep) -> String {
        self.lines_of("external", vtep)
    }

    fn lines_of(self, network: &str, vtep: &Vtep) -> String {
        let (device, mtu) = (self.device(), self.mtu());
        let Vtep { vni: _, port, local, address, mac } = vtep;
        format!(
            "link add {device} address {mac} mtu {mtu} \
             type vxlan {network} local {local} dev eth0 dstport {port} nolearning\n\
             addr add {address}/32 dev {device}\n\
             link set {device} up\n"
        )
    }

    /// Makes the node's side of the pod's link, and what the CNI routes for its own pods.
    pub(super) fn pod_side_lines(self, node: &Node) -> String {
        let (mtu, pod, pod_address) = (self.mtu(), node.pod.name(), node.pod_address());
        let device = pod_device(self, node);
        let link =
            format!("link add {device} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod}\n");
        match self {
            Self::Flannel => {
                let [a, b, c, _] = node.overlay().octets();
                format!(
                    "link add cni0 mtu {mtu} type bridge forward_delay 0\n\
                     addr add {a}.{b}.{c}.1/24 dev cni0\n\
                     link set cni0 up\n\
                     {link}link set {device} master cni0 up\n"
                )
            }
            // The blackhole for the node's own block is normal: it keeps packets
            // to addresses without a pod from leaving by the default route.
            Self::CalicoVxlan | Self::CalicoIpip => format!(
                "{link}link set {device} up\n\
                 route add {pod_address}/32 dev {device} scope link\n\
                 route add blackhole {} proto {}\n",
                self.pod_network(node),
                self.route_protocol()
            ),
        }
    }

    /// Switches of the node and what Felix sets them to, as paths under
    /// /proc/sys/net. With its usual delay of up to 0.8 s (net/ipv4/arp.c) the
    /// kernel answers for the gateway so late that packets which wait are dropped.
    pub(super) fn switches(self, node: &Node) -> Vec<(String, &'static str)> {
        match self {
            Self::Flannel => Vec::new(),
            Self::CalicoVxlan | Self::CalicoIpip => {
                let device = pod_device(self, node);
                vec![
                    (format!("ipv4/neigh/{device}/proxy_delay"), "0"),
                    (format!("ipv4/conf/{device}/proxy_arp"), "1"),
                ]
            }
        }
    }

    /// Configures the pod's end.
    pub(super) fn pod_lines(self, node: &Node) -> String {
        let pod = node.pod_address();
        let up = "link set lo up\nlink set eth0 up\n";
        match self {
            Self::Flannel => {
                let [a, b, c, _] = node.overlay().octets();
                format!("{up}addr add {pod}/24 dev eth0\nroute add default via {a}.{b}.{c}.1\n")
            }
            Self::CalicoVxlan | Self::CalicoIpip => format!(
                "{up}addr add {pod}/32 dev eth0\n\
                 route add {CALICO_GATEWAY} dev eth0 scope link\n\
                 route add default via {CALICO_GATEWAY} dev eth0\n"
            ),
        }
    }

    /// What leads to `peer`: for ip(8) the neighbour and the route, for
    /// bridge(8) the forwarding entry.
    pub(super) fn peer_lines(self, peer: &Node) -> (String, String) {
        let device = self.device();
        let (overlay, underlay, mac) = (peer.overlay(), peer.underlay(), peer.vtep(self).mac);
        let (network, protocol) = (self.pod_network(peer), self.route_protocol());
        if !self.is_vxlan() {
            // The gateway is the outer destination (net/ipv4/ip_tunnel.c).
            let route = format!(
                "route replace {network} via {underlay} dev {device} proto {protocol} onlink\n"
            );
            return (route, String::new());
        }
        (
            format!(
                "neigh replace {overlay} lladdr {mac} dev {device} nud permanent\n\
                 route replace {network} via {overlay} dev {device} proto {protocol} onlink\n"
            ),
            format!("fdb replace {mac} dev {device} dst {underlay} self permanent\n"),
        )
    }

    /// The gateway of routes into the tunnel: its address for VXLAN, whose MAC it
    /// stands for; for IPIP the outer destination (net/ipv4/ip_tunnel.c).
    #[must_use]
    pub fn gateway(self, peer: &Node) -> Ipv4Addr {
        if self.is_vxlan() { peer.overlay() } else { peer.underlay() }
    }

    /// Takes away what leads to `peer`, in the order that flannel does.
    pub(super) fn forget_lines(self, peer: &Node) -> (String, String) {
        let device = self.device();
        if !self.is_vxlan() {
            return (format!("route del {} dev {device}\n", self.pod_network(peer)), String::new());
        }
        let (overlay, underlay, mac) = (peer.overlay(), peer.underlay(), peer.vtep(self).mac);
        (
            format!(
                "route del {} dev {device}\nneigh del {overlay} dev {device}\n",
                self.pod_network(peer)
            ),
            format!("fdb del {mac} dev {device} dst {underlay} self\n"),
        )
    }
}

fn pod_device(shape: Shape, node: &Node) -> String {
    match shape {
        Shape::Flannel => format!("veth{:08x}", node.index + 1),
        Shape::CalicoVxlan | Shape::CalicoIpip => format!("cali{:011x}", node.index + 1),
    }
}
