//! IPv6: what nodes, the switch and pods have of it, where a shape has any, as
//! flannel programs it. Each family of addresses is an underlay of its own with a
//! tunnel device of its own (flannel's pkg/backend/vxlan: `flannel-v6.VNI`).

use std::net::{IpAddr, Ipv6Addr};

use anyhow::Result;

use super::shape::Vtep;
use super::{Node, Shape, UNDERLAY_MTU};
use crate::netns::Netns;

/// flannel's tunnel device for IPv6.
pub const DEVICE: &str = "flannel-v6.1";
/// Bytes that VXLAN adds over IPv6: 14 inner Ethernet + 8 VXLAN + 8 UDP + 40 IP.
const VXLAN_OVERHEAD: u16 = 70;
/// MTU of the tunnel, bytes.
pub(super) const MTU: u16 = UNDERLAY_MTU - VXLAN_OVERHEAD;
/// The switch's own address: the nodes' default gateway, which forwards nothing.
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 1);
/// Prefix length of the underlay and of a node's pod network.
const PREFIX: u8 = 64;

impl Node {
    /// Its underlay address of IPv6.
    #[must_use]
    pub fn underlay_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0x10 + u16::from(self.number()))
    }

    /// Its IPv6 tunnel device's address.
    #[must_use]
    pub fn overlay_v6(&self) -> Ipv6Addr {
        self.in_pod_network(0)
    }

    /// Its pod's address of IPv6.
    #[must_use]
    pub fn pod_address_v6(&self) -> Ipv6Addr {
        self.in_pod_network(2)
    }

    fn in_pod_network(&self, host: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x42, u16::from(self.number()), 0, 0, 0, 0, host)
    }

    /// The pod network of IPv6.
    pub(super) fn pod_network_v6(&self) -> String {
        format!("{}/{PREFIX}", self.overlay_v6())
    }

    /// The part of it that holds its tunnel address and its pod.
    pub(super) fn pod_network_half_v6(&self) -> String {
        format!("{}/{}", self.overlay_v6(), PREFIX + 1)
    }

    /// The address that a list of peers names it by.
    #[must_use]
    pub fn address(&self, shape: Shape) -> IpAddr {
        if shape.has_ipv4() { self.underlay().into() } else { self.underlay_v6().into() }
    }

    /// The addresses by each of which it is a peer.
    #[must_use]
    pub fn addresses(&self, shape: Shape) -> Vec<IpAddr> {
        let v4 = shape.has_ipv4().then(|| self.underlay().into());
        v4.into_iter().chain(shape.has_ipv6().then(|| self.underlay_v6().into())).collect()
    }

    /// The IPv6 tunnel device that it ought to have.
    pub(super) fn vtep_v6(&self) -> Vtep {
        Vtep {
            vni: Shape::FlannelV6.vni(),
            port: Shape::FlannelV6.port(),
            local: self.underlay_v6().into(),
            address: self.overlay_v6().into(),
            mac: format!("0e:46:00:00:00:{:02x}", self.number()),
        }
    }
}

/// Switches IPv6 on in a namespace that was made without it. Addresses are there at
/// once, and nobody looks for routers: as little noise as can be.
pub(super) fn enable(netns: &Netns, forwards: bool) -> Result<()> {
    for (switch, value) in [
        ("default/accept_dad", "0"),
        ("default/accept_ra", "0"),
        ("default/router_solicitations", "0"),
        ("default/disable_ipv6", "0"),
        ("all/disable_ipv6", "0"),
        ("all/forwarding", if forwards { "1" } else { "0" }),
    ] {
        netns.set(&format!("ipv6/conf/{switch}"), value)?;
    }
    Ok(())
}

pub(super) fn switch_lines() -> String {
    format!("addr add {GATEWAY}/{PREFIX} dev br0 nodad\n")
}

/// What a node's NIC has of IPv6.
pub(super) fn uplink_lines(node: &Node) -> String {
    format!(
        "addr add {}/{PREFIX} dev eth0 nodad\nroute add default via {GATEWAY} dev eth0 onlink\n",
        node.underlay_v6()
    )
}

/// What the bridge of a node's pods has of it.
pub(super) fn bridge_lines(node: &Node) -> String {
    format!("addr add {}/{PREFIX} dev cni0 nodad\n", node.in_pod_network(1))
}

/// What a pod has of it.
pub(super) fn pod_lines(node: &Node) -> String {
    format!(
        "addr add {}/{PREFIX} dev eth0 nodad\nroute add default via {}\n",
        node.pod_address_v6(),
        node.in_pod_network(1)
    )
}

/// What leads to `peer`: for ip(8) the neighbour and the route, for bridge(8) the
/// forwarding entry.
pub(super) fn peer_lines(peer: &Node) -> (String, String) {
    let (overlay, underlay, mac) = (peer.overlay_v6(), peer.underlay_v6(), peer.vtep_v6().mac);
    let network = peer.pod_network_v6();
    (
        format!(
            "neigh replace {overlay} lladdr {mac} dev {DEVICE} nud permanent\n\
             route replace {network} via {overlay} dev {DEVICE} proto 3 onlink\n"
        ),
        format!("fdb replace {mac} dev {DEVICE} dst {underlay} self permanent\n"),
    )
}

/// Takes away what leads to `peer`.
pub(super) fn forget_lines(peer: &Node) -> (String, String) {
    let (overlay, underlay, mac) = (peer.overlay_v6(), peer.underlay_v6(), peer.vtep_v6().mac);
    (
        format!(
            "route del {} dev {DEVICE}\nneigh del {overlay} dev {DEVICE}\n",
            peer.pod_network_v6()
        ),
        format!("fdb del {mac} dev {DEVICE} dst {underlay} self\n"),
    )
}
