//! The shapes: whose overlay a cluster has.

mod lines;

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, ensure};
use clap::ValueEnum;
use overlaywatch_core::model::Encapsulation;
use serde::{Deserialize, Serialize};

use super::{Node, UNDERLAY_MTU, v6};
use crate::module;

/// Bytes that VXLAN adds over IPv4: 14 inner Ethernet + 8 VXLAN + 8 UDP + 20 IP.
const VXLAN_OVERHEAD: u16 = 50;
/// Bytes that IPIP adds: an IP header.
const IPIP_OVERHEAD: u16 = 20;
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
    /// Calico's IPIP for other subnets alone: two nodes and two in each, a router
    /// between; plain routes within.
    CalicoCrossSubnet,
    /// Calico with pods in two pools: in the old one by IPIP still, in the new one by VXLAN.
    CalicoMigration,
    /// flannel's IPIP: flannel.ipip, IP protocol 4, pods behind cni0.
    FlannelIpip,
    /// kube-router's IPIP: a tunnel to each peer, pods behind kube-bridge.
    KubeRouter,
    /// flannel's VXLAN where nodes and pods have IPv6 alone: flannel-v6.1.
    FlannelV6,
    /// flannel's VXLAN where nodes and pods have both: flannel.1 over IPv4 and
    /// flannel-v6.1 over IPv6.
    FlannelDual,
}

/// A VXLAN tunnel endpoint.
#[derive(Clone, Debug)]
pub struct Vtep {
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Outer source address.
    pub local: IpAddr,
    /// The device's own address.
    pub address: IpAddr,
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
            Self::CalicoCrossSubnet => "calico-cross-subnet",
            Self::CalicoMigration => "calico-migration",
            Self::FlannelIpip => "flannel-ipip",
            Self::KubeRouter => "kube-router",
            Self::FlannelV6 => "flannel-v6",
            Self::FlannelDual => "flannel-dual",
        }
    }

    /// Whether faults that name no shape are tried in it.
    #[must_use]
    pub const fn is_usual(self) -> bool {
        matches!(self, Self::Flannel | Self::CalicoVxlan | Self::CalicoIpip)
    }

    /// The tunnel device's name: where there are several, the one that is kept, or the
    /// one to the second node.
    #[must_use]
    pub const fn device(self) -> &'static str {
        match self {
            Self::Flannel | Self::FlannelDual => "flannel.1",
            Self::FlannelV6 => v6::DEVICE,
            Self::CalicoVxlan | Self::CalicoMigration => "vxlan.calico",
            Self::CalicoIpip | Self::CalicoCrossSubnet => "tunl0",
            Self::FlannelIpip => "flannel.ipip",
            Self::KubeRouter => "tun-0000a00000c",
        }
    }

    /// Tunnel devices of a node in a cluster of `size`.
    #[must_use]
    pub const fn devices(self, size: usize) -> usize {
        match self {
            Self::CalicoMigration | Self::FlannelDual => 2,
            Self::KubeRouter => size.saturating_sub(1),
            _ => 1,
        }
    }

    /// Whether its encapsulation is VXLAN alone; else it has IPIP.
    #[must_use]
    pub const fn is_vxlan(self) -> bool {
        matches!(self, Self::Flannel | Self::CalicoVxlan | Self::FlannelV6 | Self::FlannelDual)
    }

    /// Whether nodes and pods have IPv4.
    #[must_use]
    pub const fn has_ipv4(self) -> bool {
        !matches!(self, Self::FlannelV6)
    }

    /// Whether nodes and pods have IPv6.
    #[must_use]
    pub const fn has_ipv6(self) -> bool {
        matches!(self, Self::FlannelV6 | Self::FlannelDual)
    }

    /// Families of addresses that nodes and pods have: by each of them every other node
    /// is a peer.
    #[must_use]
    pub const fn families(self) -> usize {
        if matches!(self, Self::FlannelDual) { 2 } else { 1 }
    }

    /// How packets for a node's pods go, from another node.
    #[must_use]
    pub fn encapsulations(self, from: &Node, to: &Node) -> Vec<Encapsulation> {
        match self {
            Self::Flannel | Self::CalicoVxlan | Self::FlannelV6 | Self::FlannelDual => {
                vec![Encapsulation::Vxlan(self.port())]
            }
            Self::CalicoCrossSubnet if from.subnet == to.subnet => Vec::new(),
            Self::CalicoIpip | Self::CalicoCrossSubnet | Self::FlannelIpip | Self::KubeRouter => {
                vec![Encapsulation::Ipip]
            }
            Self::CalicoMigration => vec![Encapsulation::Ipip, Encapsulation::Vxlan(self.port())],
        }
    }

    /// The subnet of a node, by its place in the cluster.
    pub(super) const fn subnet(self, index: usize) -> u8 {
        match self {
            Self::CalicoCrossSubnet if index / 2 % 2 == 1 => 1,
            _ => 0,
        }
    }

    /// The subnets of the underlay.
    pub(super) const fn subnets(self) -> &'static [u8] {
        match self {
            Self::CalicoCrossSubnet => &[0, 1],
            _ => &[0],
        }
    }

    /// The overlay address that a list of peers gives to a node: of IPIP nothing on
    /// the others says it. Where devices have several, or none, nodes tell each other.
    #[must_use]
    pub fn listed_overlay(self, node: &Node) -> Option<Ipv4Addr> {
        match self {
            Self::CalicoIpip | Self::CalicoCrossSubnet | Self::FlannelIpip => Some(node.overlay()),
            Self::Flannel
            | Self::CalicoVxlan
            | Self::CalicoMigration
            | Self::KubeRouter
            | Self::FlannelV6
            | Self::FlannelDual => None,
        }
    }

    /// Its encapsulation in words.
    #[must_use]
    pub fn encapsulation(self) -> String {
        match self {
            Self::Flannel | Self::CalicoVxlan | Self::FlannelV6 | Self::FlannelDual => {
                format!("VNI {}, UDP {}", self.vni(), self.port())
            }
            Self::CalicoIpip | Self::FlannelIpip => "IP protocol 4".to_owned(),
            Self::CalicoCrossSubnet => "IP protocol 4 between subnets".to_owned(),
            Self::CalicoMigration => {
                format!("IP protocol 4, and VNI {}, UDP {}", self.vni(), self.port())
            }
            Self::KubeRouter => "IP protocol 4, a device for each peer".to_owned(),
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
            Self::Flannel | Self::FlannelV6 | Self::FlannelDual => 8472,
            Self::CalicoVxlan | Self::CalicoMigration => 4789,
            _ => 0,
        }
    }

    /// The network identifier; 0 for IPIP, which has none.
    #[must_use]
    pub const fn vni(self) -> u32 {
        match self {
            Self::Flannel | Self::FlannelV6 | Self::FlannelDual => 1,
            Self::CalicoVxlan | Self::CalicoMigration => 4096,
            _ => 0,
        }
    }

    /// MTU of pods, bytes, and of the tunnel: of VXLAN's, where there is one.
    #[must_use]
    pub const fn mtu(self) -> u16 {
        if self.has_ipv6() {
            // Of two tunnels the pods' MTU has to fit both.
            return v6::MTU;
        }
        UNDERLAY_MTU - if self.port() > 0 { VXLAN_OVERHEAD } else { IPIP_OVERHEAD }
    }

    /// Prefix length of a node's pod network: flannel gives each node a /24, as
    /// Kubernetes does where it hands them out, Calico's IPAM gives blocks of /26.
    const fn pod_prefix(self) -> u8 {
        match self {
            Self::Flannel
            | Self::FlannelIpip
            | Self::KubeRouter
            | Self::FlannelV6
            | Self::FlannelDual => 24,
            Self::CalicoVxlan
            | Self::CalicoIpip
            | Self::CalicoCrossSubnet
            | Self::CalicoMigration => 26,
        }
    }

    /// The pod network of a node; while it moves to another, the old one.
    #[must_use]
    pub fn pod_network(self, node: &Node) -> String {
        if !self.has_ipv4() {
            return node.pod_network_v6();
        }
        format!("{}/{}", node.overlay(), self.pod_prefix())
    }

    /// A part of a node's pod network that holds its tunnel address and its pod.
    #[must_use]
    pub fn pod_network_half(self, node: &Node) -> String {
        if !self.has_ipv4() {
            return node.pod_network_half_v6();
        }
        format!("{}/{}", node.overlay(), self.pod_prefix() + 1)
    }

    /// The gateway of routes into the tunnel: its address for VXLAN, whose MAC it
    /// stands for; for IPIP the outer destination (net/ipv4/ip_tunnel.c).
    #[must_use]
    pub fn gateway(self, peer: &Node) -> Ipv4Addr {
        if self.is_vxlan() { peer.overlay() } else { peer.underlay() }
    }
}
