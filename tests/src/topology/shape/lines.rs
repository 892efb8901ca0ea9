//! What network plugins program into a node, line by line for ip(8) and bridge(8).

use std::net::{IpAddr, Ipv4Addr};

use super::{IPIP_OVERHEAD, Shape, Vtep};
use crate::topology::{Node, UNDERLAY_MTU, v6};

/// The address that stands for the node in every Calico pod (Felix answers
/// for it through proxy ARP).
const CALICO_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Routing protocols of plugins' routes: flannel's go in as boot.
const BOOT: u8 = 3;
/// BIRD's.
const BIRD: u8 = 12;
/// kube-router's.
const KUBE_ROUTER: u8 = 17;
/// Felix's.
const FELIX: u8 = 80;
/// kube-router's table for what pods send to nodes (pkg/routes).
const KUBE_ROUTER_TABLE: u8 = 77;

impl Shape {
    /// Makes the tunnel devices that serve all peers.
    pub(in crate::topology) fn device_lines(self, node: &Node, vtep: &Vtep) -> String {
        match self {
            Self::Flannel | Self::CalicoVxlan | Self::FlannelV6 | Self::FlannelDual => {
                self.vxlan_lines(&format!("id {}", vtep.vni), vtep)
            }
            Self::CalicoIpip | Self::CalicoCrossSubnet => tunl0_lines(node.overlay()),
            Self::CalicoMigration => {
                tunl0_lines(node.overlay()) + &self.vxlan_lines(&format!("id {}", vtep.vni), vtep)
            }
            // As configureIPIPDevice does it (pkg/backend/ipip): netlink's own default
            // leaves out path MTU discovery.
            Self::FlannelIpip => {
                let (device, mtu, Vtep { local, address, .. }) = (self.device(), self.mtu(), vtep);
                format!(
                    "link add {device} type ipip local {local} nopmtudisc\n\
                     link set {device} mtu {mtu}\n\
                     addr add {address}/32 dev {device}\n\
                     link set {device} up\n"
                )
            }
            Self::KubeRouter => {
                format!("rule add from {} lookup {KUBE_ROUTER_TABLE}\n", self.pod_network(node))
            }
        }
    }

    /// Makes the tunnel device to one peer, where each has its own.
    pub(in crate::topology) fn tunnel_lines(self, node: &Node, peer: &Node) -> String {
        match self {
            Self::KubeRouter => {
                let (device, local, remote) =
                    (kube_router_device(peer), node.underlay(), peer.underlay());
                format!(
                    "link add {device} type ipip local {local} remote {remote}\n\
                     link set {device} up\n"
                )
            }
            _ => String::new(),
        }
    }

    /// Makes a VXLAN device that takes the network identifier and the peer of
    /// each packet from its metadata.
    pub(in crate::topology) fn external_lines(self, vtep: &Vtep) -> String {
        self.vxlan_lines("external", vtep)
    }

    fn vxlan_lines(self, network: &str, vtep: &Vtep) -> String {
        let mtu = self.mtu();
        let Vtep { vni: _, port, local, address, mac } = vtep;
        let (device, own) = match address {
            IpAddr::V4(_) => (self.device(), format!("{address}/32")),
            // Nobody else has it: it need not be asked for.
            IpAddr::V6(_) => (v6::DEVICE, format!("{address}/128 nodad")),
        };
        format!(
            "link add {device} address {mac} mtu {mtu} \
             type vxlan {network} local {local} dev eth0 dstport {port} nolearning\n\
             addr add {own} dev {device}\n\
             link set {device} up\n"
        )
    }

    /// Makes the node's side of the pod's link, and what the CNI routes for its own pods.
    pub(in crate::topology) fn pod_side_lines(self, node: &Node) -> String {
        let (mtu, pod) = (self.mtu(), node.pod.name());
        let device = self.pod_device(node);
        let link =
            format!("link add {device} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod}\n");
        let on_bridge = |bridge: &str| {
            let [a, b, c, _] = node.overlay().octets();
            let v4 = format!("addr add {a}.{b}.{c}.1/24 dev {bridge}\n");
            format!(
                "link add {bridge} mtu {mtu} type bridge forward_delay 0\n\
                 {}{}link set {bridge} up\n\
                 {link}link set {device} master {bridge} up\n",
                if self.has_ipv4() { v4 } else { String::new() },
                if self.has_ipv6() { v6::bridge_lines(node) } else { String::new() },
            )
        };
        // The blackhole for the node's own block is normal: it keeps packets
        // to addresses without a pod from leaving by the default route.
        let block = |pod: Ipv4Addr, network: &str, protocol: u8| {
            format!(
                "route add {pod}/32 dev {device} scope link\n\
                 route add blackhole {network} proto {protocol}\n"
            )
        };
        let up = format!("{link}link set {device} up\n");
        let old = |protocol| block(node.pod_address(), &self.pod_network(node), protocol);
        match self {
            Self::Flannel | Self::FlannelIpip | Self::FlannelV6 | Self::FlannelDual => {
                on_bridge("cni0")
            }
            Self::KubeRouter => on_bridge("kube-bridge"),
            Self::CalicoVxlan => up + &old(FELIX),
            Self::CalicoIpip | Self::CalicoCrossSubnet => up + &old(BIRD),
            Self::CalicoMigration => {
                let new = block(node.moved_pod_address(), &self.moved_pod_network(node), FELIX);
                up + &old(BIRD) + &new
            }
        }
    }

    /// Takes away the tunnel device and the node's side of the pod's link, in Calico's
    /// shapes. The kernel's own tunl0 stays as long as the namespace
    /// (net/ipv4/ip_tunnel.c).
    pub(in crate::topology) fn undo_lines(self, node: &Node) -> String {
        let (device, pod) = (self.device(), self.pod_device(node));
        let tunnel = if self.is_vxlan() {
            format!("link del {device}\n")
        } else {
            format!("link set {device} down\naddr flush dev {device}\n")
        };
        format!("{tunnel}link del {pod}\n")
    }

    /// Switches of the node and what Felix sets them to, as paths under
    /// /proc/sys/net. With its usual delay of up to 0.8 s (net/ipv4/arp.c) the
    /// kernel answers for the gateway so late that packets which wait are dropped.
    pub(in crate::topology) fn switches(self, node: &Node) -> Vec<(String, &'static str)> {
        if !self.is_calico() {
            return Vec::new();
        }
        let device = self.pod_device(node);
        vec![
            (format!("ipv4/neigh/{device}/proxy_delay"), "0"),
            (format!("ipv4/conf/{device}/proxy_arp"), "1"),
        ]
    }

    /// Configures the pod's end.
    pub(in crate::topology) fn pod_lines(self, node: &Node) -> String {
        let pod = node.pod_address();
        let up = "link set lo up\nlink set eth0 up\n";
        if !self.is_calico() {
            let [a, b, c, _] = node.overlay().octets();
            let v4 = format!("addr add {pod}/24 dev eth0\nroute add default via {a}.{b}.{c}.1\n");
            return format!(
                "{up}{}{}",
                if self.has_ipv4() { v4 } else { String::new() },
                if self.has_ipv6() { v6::pod_lines(node) } else { String::new() },
            );
        }
        let moved = match self {
            Self::CalicoMigration => format!("addr add {}/32 dev eth0\n", node.moved_pod_address()),
            _ => String::new(),
        };
        format!(
            "{up}addr add {pod}/32 dev eth0\n{moved}\
             route add {CALICO_GATEWAY} dev eth0 scope link\n\
             route add default via {CALICO_GATEWAY} dev eth0\n"
        )
    }

    /// What leads from `node` to `peer`: for ip(8) the neighbour and the route, for
    /// bridge(8) the forwarding entry.
    pub(in crate::topology) fn peer_lines(self, node: &Node, peer: &Node) -> (String, String) {
        let network = self.pod_network(peer);
        match self {
            Self::Flannel => self.vtep_lines(peer, &network, BOOT),
            Self::FlannelV6 => v6::peer_lines(peer),
            Self::FlannelDual => {
                let (routes, forwarding) = self.vtep_lines(peer, &network, BOOT);
                let v6 = v6::peer_lines(peer);
                (routes + &v6.0, forwarding + &v6.1)
            }
            Self::CalicoVxlan => self.vtep_lines(peer, &network, FELIX),
            Self::CalicoCrossSubnet if node.subnet == peer.subnet => {
                let underlay = peer.underlay();
                let route =
                    format!("route replace {network} via {underlay} dev eth0 proto {BIRD}\n");
                (route, String::new())
            }
            Self::CalicoIpip | Self::CalicoCrossSubnet => {
                (ipip_route(peer, &network, self.device(), BIRD), String::new())
            }
            Self::FlannelIpip => (ipip_route(peer, &network, self.device(), BOOT), String::new()),
            Self::CalicoMigration => {
                let (new, forwarding) = self.vtep_lines(peer, &self.moved_pod_network(peer), FELIX);
                (ipip_route(peer, &network, "tunl0", BIRD) + &new, forwarding)
            }
            Self::KubeRouter => {
                let device = kube_router_device(peer);
                let (own, underlay) = (node.underlay(), peer.underlay());
                let routes = format!(
                    "route replace {network} dev {device} proto {KUBE_ROUTER} src {own}\n\
                     route replace {underlay} dev {device} table {KUBE_ROUTER_TABLE}\n"
                );
                (routes, String::new())
            }
        }
    }

    /// Lets `node` send to what was IPIP's of `peer` by VXLAN: what Felix does once the
    /// old pool's encapsulation is changed, too.
    pub(in crate::topology) fn moving_lines(self, peer: &Node) -> String {
        let (_, new) = self.vtep_route(peer, &self.pod_network(peer), FELIX);
        new
    }

    fn vtep_lines(self, peer: &Node, network: &str, protocol: u8) -> (String, String) {
        let (device, underlay, mac) = (self.device(), peer.underlay(), peer.vtep(self).mac);
        let (neighbour, route) = self.vtep_route(peer, network, protocol);
        (
            neighbour + &route,
            format!("fdb replace {mac} dev {device} dst {underlay} self permanent\n"),
        )
    }

    /// The neighbour of a VTEP, and the route by it.
    fn vtep_route(self, peer: &Node, network: &str, protocol: u8) -> (String, String) {
        let Vtep { address, mac, .. } = peer.vtep(self);
        let device = self.device();
        (
            format!("neigh replace {address} lladdr {mac} dev {device} nud permanent\n"),
            format!("route replace {network} via {address} dev {device} proto {protocol} onlink\n"),
        )
    }

    /// Takes away what leads to `peer`, in the order that flannel does.
    pub(in crate::topology) fn forget_lines(self, peer: &Node) -> (String, String) {
        match self {
            Self::FlannelV6 => return v6::forget_lines(peer),
            Self::FlannelDual => {
                let (routes, forwarding) = Self::Flannel.forget_lines(peer);
                let v6 = v6::forget_lines(peer);
                return (routes + &v6.0, forwarding + &v6.1);
            }
            _ => {}
        }
        let route = format!("route del {}\n", self.pod_network(peer));
        if self.port() == 0 {
            return (route, String::new());
        }
        let (device, underlay) = (self.device(), peer.underlay());
        let Vtep { address, mac, .. } = peer.vtep(self);
        let moved = match self {
            Self::CalicoMigration => format!("route del {}\n", self.moved_pod_network(peer)),
            _ => String::new(),
        };
        (
            format!("{route}{moved}neigh del {address} dev {device}\n"),
            format!("fdb del {mac} dev {device} dst {underlay} self\n"),
        )
    }

    const fn is_calico(self) -> bool {
        match self {
            Self::CalicoVxlan
            | Self::CalicoIpip
            | Self::CalicoCrossSubnet
            | Self::CalicoMigration => true,
            Self::Flannel
            | Self::FlannelIpip
            | Self::KubeRouter
            | Self::FlannelV6
            | Self::FlannelDual => false,
        }
    }

    fn pod_device(self, node: &Node) -> String {
        if self.is_calico() {
            format!("cali{:011x}", node.index + 1)
        } else {
            format!("veth{:08x}", node.index + 1)
        }
    }

    /// The network of a node's pods in the pool that they move to.
    fn moved_pod_network(self, node: &Node) -> String {
        format!("{}/{}", node.moved_overlay(), self.pod_prefix())
    }
}

/// The kernel itself makes tunl0 in each namespace (net/ipv4/ipip.c) once another
/// one had it load the module.
fn tunl0_lines(address: Ipv4Addr) -> String {
    let mtu = UNDERLAY_MTU - IPIP_OVERHEAD;
    format!(
        "link add loads-ipip type ipip remote 192.0.2.1\n\
         link del loads-ipip\n\
         link set tunl0 mtu {mtu} up\n\
         addr add {address}/32 dev tunl0\n"
    )
}

/// The gateway is the outer destination (net/ipv4/ip_tunnel.c).
fn ipip_route(peer: &Node, network: &str, device: &str, protocol: u8) -> String {
    let underlay = peer.underlay();
    format!("route replace {network} via {underlay} dev {device} proto {protocol} onlink\n")
}

/// kube-router takes as many digits of a hash of the address (GenerateTunnelName,
/// pkg/tunnels).
fn kube_router_device(peer: &Node) -> String {
    format!("tun-{:011x}", peer.underlay().to_bits())
}
