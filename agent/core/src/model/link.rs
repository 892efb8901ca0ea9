//! Network devices.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::{IfIndex, Mac};

/// A network device as RTM_NEWLINK describes it (rtnetlink(7)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its index.
    pub index: IfIndex,
    /// Its name (`IFLA_IFNAME`).
    pub name: String,
    /// What it is (`IFLA_INFO_KIND`), with the attributes that matter here.
    pub kind: LinkKind,
    /// Its link-layer address, where it has one of six bytes (`IFLA_ADDRESS`).
    pub mac: Option<Mac>,
    /// Largest packet above the link layer, bytes (`IFLA_MTU`).
    pub mtu: u32,
    /// Switched on by the administrator (`IFF_UP`).
    pub admin_up: bool,
    /// The layer below is up too (`IFF_LOWER_UP`): there is a carrier.
    pub carrier: bool,
    /// The bridge, bond or VRF that it belongs to (`IFLA_MASTER`).
    pub master: Option<IfIndex>,
    /// Packet counters (`IFLA_STATS64`).
    pub counters: LinkCounters,
}

impl Link {
    /// Whether pods of this node are behind it: the bridges of flannel (K3s,
    /// kubenet) and kube-router, Calico's device for each pod. The names are fixed
    /// in the projects' sources.
    #[must_use]
    pub fn leads_to_pods(&self) -> bool {
        match self.kind {
            LinkKind::Bridge => matches!(self.name.as_str(), "cni0" | "cbr0" | "kube-bridge"),
            LinkKind::Veth => self.name.starts_with("cali"),
            _ => false,
        }
    }
}

/// What kind of device a link is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// A VXLAN tunnel device.
    Vxlan(Vxlan),
    /// An IPIP tunnel device (`ipip`, `tunl0`).
    Ipip(Ipip),
    /// A bridge.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// The loopback device.
    Loopback,
    /// A VLAN on another device.
    Vlan,
    /// A bond or team of devices.
    Bond,
    /// A WireGuard device.
    Wireguard,
    /// A device without a kind: as a rule hardware.
    Plain,
    /// Any other kind, by its kernel name.
    Other(String),
}

/// Attributes of a VXLAN device (`IFLA_VXLAN_*`, linux/if_link.h).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits (`IFLA_VXLAN_ID`).
    pub vni: u32,
    /// UDP destination port in host order (`IFLA_VXLAN_PORT`).
    pub port: u16,
    /// Source address of outer packets (`IFLA_VXLAN_LOCAL`, `_LOCAL6`).
    pub local: Option<IpAddr>,
    /// Default destination: a group or one peer (`IFLA_VXLAN_GROUP`, `_GROUP6`).
    pub group: Option<IpAddr>,
    /// The device below (`IFLA_VXLAN_LINK`).
    pub underlay: Option<IfIndex>,
    /// Learns peers from traffic (`IFLA_VXLAN_LEARNING`).
    pub learning: bool,
    /// The tunnel key comes from a BPF program or route (`IFLA_VXLAN_COLLECT_METADATA`).
    pub collect_metadata: bool,
}

/// Attributes of an IPIP device (`IFLA_IPTUN_*`, linux/if_tunnel.h).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipip {
    /// Source address of outer packets; none means "as the route says".
    pub local: Option<Ipv4Addr>,
    /// The one peer of a point-to-point tunnel; none where the route's gateway decides.
    pub remote: Option<Ipv4Addr>,
    /// The device below (`IFLA_IPTUN_LINK`).
    pub underlay: Option<IfIndex>,
    /// The tunnel key comes from a BPF program or route.
    pub collect_metadata: bool,
}

/// Packet counters since the device was made (`struct rtnl_link_stats64`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCounters {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Received with an error.
    pub rx_errors: u64,
    /// Not sent because of an error.
    pub tx_errors: u64,
    /// Received but dropped.
    pub rx_dropped: u64,
    /// Dropped before they were sent.
    pub tx_dropped: u64,
    /// Missed by the receiver (ring full).
    pub rx_missed: u64,
    /// Lost to a missing carrier; on a tunnel also to a missing route below.
    pub tx_carrier_errors: u64,
}
