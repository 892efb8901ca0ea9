//! Tunnel devices: which encapsulation they speak and which CNI made them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Address, IfIndex, Link, LinkKind, Mac, PeerId};

/// How inner packets are wrapped; part of the identity of a path between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Encapsulation {
    /// IP in IP, protocol 4 (RFC 2003).
    Ipip,
    /// VXLAN to this UDP port (RFC 7348; 4789 is IANA's, 8472 the kernel's older default).
    Vxlan(u16),
}

impl Encapsulation {
    /// Bytes that the encapsulation adds to each inner IP packet over an
    /// underlay of `outer`'s family: outer IP header, and for VXLAN also
    /// UDP (8), VXLAN (8) and the inner Ethernet header (14).
    #[must_use]
    pub const fn overhead_bytes(self, outer_is_v6: bool) -> u32 {
        let ip = if outer_is_v6 { 40 } else { 20 };
        match self {
            Self::Ipip => ip,
            Self::Vxlan(_) => ip + 8 + 8 + 14,
        }
    }
}

impl fmt::Display for Encapsulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipip => f.pad("ipip"),
            Self::Vxlan(port) => f.pad(&format!("vxlan/{port}")),
        }
    }
}

/// A text that names no encapsulation.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not an encapsulation: `ipip` or `vxlan/PORT`")]
pub struct BadEncapsulation(String);

impl FromStr for Encapsulation {
    type Err = BadEncapsulation;

    fn from_str(text: &str) -> Result<Self, BadEncapsulation> {
        if text == "ipip" {
            return Ok(Self::Ipip);
        }
        text.strip_prefix("vxlan/")
            .and_then(|port| port.parse().ok())
            .map(Self::Vxlan)
            .ok_or_else(|| BadEncapsulation(text.to_owned()))
    }
}

impl TryFrom<String> for Encapsulation {
    type Error = BadEncapsulation;

    fn try_from(text: String) -> Result<Self, BadEncapsulation> {
        text.parse()
    }
}

impl From<Encapsulation> for String {
    fn from(encapsulation: Encapsulation) -> Self {
        encapsulation.to_string()
    }
}

/// Who made a tunnel device, told by its fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// Flannel, also K3s's built-in one.
    Flannel,
    /// Calico.
    Calico,
    /// Cilium.
    Cilium,
    /// kube-router.
    KubeRouter,
    /// Nobody whose fingerprint is known.
    Unknown,
}

impl Owner {
    /// The owner's name as people write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flannel => "flannel",
            Self::Calico => "calico",
            Self::Cilium => "cilium",
            Self::KubeRouter => "kube-router",
            Self::Unknown => "unknown",
        }
    }

    /// Told from the device's name. The names are fixed in the projects'
    /// sources: flannel `flannel.VNI`, `flannel-v6.VNI` and `flannel.ipip`
    /// (pkg/backend), Calico `tunl0`, `vxlan.calico`, `vxlan-v6.calico`
    /// (felix/config), Cilium `cilium_vxlan`, `cilium_ipip*` (pkg/defaults),
    /// kube-router `tun-` and eleven hexadecimal digits (pkg/tunnels).
    #[must_use]
    pub fn of_device(name: &str) -> Self {
        let kube_router = name.strip_prefix("tun-").is_some_and(|rest| {
            rest.len() == 11 && rest.bytes().all(|byte| byte.is_ascii_hexdigit())
        });
        if name.starts_with("flannel.") || name.starts_with("flannel-v6.") {
            Self::Flannel
        } else if matches!(name, "tunl0" | "vxlan.calico" | "vxlan-v6.calico") {
            Self::Calico
        } else if name.starts_with("cilium_") {
            Self::Cilium
        } else if kube_router {
            Self::KubeRouter
        } else {
            Self::Unknown
        }
    }
}

/// A tunnel device with what its links and addresses say together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// The device's index.
    pub index: IfIndex,
    /// The device's name.
    pub name: String,
    /// How it wraps packets.
    pub encapsulation: Encapsulation,
    /// Who made it.
    pub owner: Owner,
    /// VXLAN network identifier.
    pub vni: Option<u32>,
    /// Configured source address of outer packets.
    pub local: Option<IpAddr>,
    /// The overlay address on the device, or on the bridge to pods where the
    /// device, as one of a peer's own, has none: where probes come from and go to.
    pub address: Option<IpAddr>,
    /// The VTEP's MAC (VXLAN).
    pub mac: Option<Mac>,
    /// Largest inner IP packet, bytes.
    pub mtu: u32,
    /// Switched on.
    pub up: bool,
    /// The configured device below, if one is configured.
    pub underlay: Option<IfIndex>,
    /// VXLAN: learns peers from traffic, so that a missing FDB entry is no fault.
    pub learning: bool,
    /// The tunnel key comes from outside (Cilium): no per-peer FDB or routes.
    pub collect_metadata: bool,
    /// The one peer of a point-to-point tunnel, or a VXLAN default destination.
    pub remote: Option<IpAddr>,
}

impl Tunnel {
    /// The peer at the other end of a point-to-point tunnel of IPIP.
    #[must_use]
    pub fn only_peer(&self) -> Option<PeerId> {
        match self.encapsulation {
            Encapsulation::Ipip => {
                self.remote.filter(|remote| !remote.is_unspecified()).map(PeerId)
            }
            Encapsulation::Vxlan(_) => None,
        }
    }

    /// Whether outer packets are IPv6, told by the addresses that they come from or
    /// go to by default: a device has one family (vxlan_config_validate,
    /// drivers/net/vxlan/vxlan_core.c). None where it has neither address, or each
    /// packet brings its own.
    #[must_use]
    pub fn outer_is_v6(&self) -> Option<bool> {
        if self.collect_metadata {
            return None;
        }
        match self.encapsulation {
            Encapsulation::Ipip => Some(false),
            Encapsulation::Vxlan(_) => {
                let mut ends = self.local.iter().chain(&self.remote);
                ends.find(|address| !address.is_unspecified()).map(IpAddr::is_ipv6)
            }
        }
    }

    /// Whether its outer packets can be addressed to a node by this address.
    #[must_use]
    pub fn may_lead_to(&self, node: IpAddr) -> bool {
        self.outer_is_v6().is_none_or(|v6| v6 == node.is_ipv6())
    }
}

/// The address of the bridge that leads to pods, where there is one.
fn bridge_address(links: &BTreeMap<IfIndex, Link>, addresses: &[Address]) -> Option<IpAddr> {
    let is_bridge_to_pods = |index: &IfIndex| {
        links.get(index).is_some_and(|it| it.kind == LinkKind::Bridge && it.leads_to_pods())
    };
    addresses
        .iter()
        .filter(|a| a.net.addr().is_ipv4() && !a.is_link_local() && is_bridge_to_pods(&a.index))
        .map(|a| a.net.addr())
        .next()
}

/// The tunnel devices among `links`, ordered by device index.
///
/// kube-router gives the tunnels to its peers no address (pkg/tunnels): what the
/// host itself would send to pods from is that of its bridge.
///
/// `tunl0` without an address and switched off is the kernel's own fallback
/// device that appears with the module (net/ipv4/ipip.c), not a tunnel in use:
/// it is left out.
#[must_use]
pub fn tunnels(links: &BTreeMap<IfIndex, Link>, addresses: &[Address]) -> Vec<Tunnel> {
    links
        .values()
        .filter_map(|link| {
            let address = addresses
                .iter()
                .filter(|a| a.index == link.index && !a.is_link_local())
                .map(|a| a.net.addr())
                .min_by_key(IpAddr::is_ipv6);
            let blank = Tunnel {
                index: link.index,
                name: link.name.clone(),
                encapsulation: Encapsulation::Ipip,
                owner: Owner::of_device(&link.name),
                vni: None,
                local: None,
                address,
                mac: None,
                mtu: link.mtu,
                up: link.admin_up,
                underlay: None,
                learning: false,
                collect_metadata: false,
                remote: None,
            };
            match &link.kind {
                LinkKind::Vxlan(vxlan) => Some(Tunnel {
                    encapsulation: Encapsulation::Vxlan(vxlan.port),
                    // A device whose key comes from outside has none of its own.
                    vni: (!vxlan.collect_metadata).then_some(vxlan.vni),
                    local: vxlan.local,
                    mac: link.mac,
                    underlay: vxlan.underlay,
                    learning: vxlan.learning,
                    collect_metadata: vxlan.collect_metadata,
                    remote: vxlan.group,
                    ..blank
                }),
                LinkKind::Ipip(ipip)
                    if !link.admin_up
                        && address.is_none()
                        && ipip.remote.is_none_or(|it| it.is_unspecified()) =>
                {
                    None
                }
                LinkKind::Ipip(ipip) => Some(Tunnel {
                    local: ipip.local.map(IpAddr::V4),
                    address: address
                        .or_else(|| ipip.remote.and_then(|_| bridge_address(links, addresses))),
                    underlay: ipip.underlay,
                    collect_metadata: ipip.collect_metadata,
                    remote: ipip.remote.map(IpAddr::V4),
                    ..blank
                }),
                _ => None,
            }
        })
        .collect()
}

#[cfg(test)]
impl Tunnel {
    /// A VXLAN device that is up and of nobody known, for tests.
    pub(crate) fn plain(index: IfIndex, name: &str, port: u16, vni: u32) -> Self {
        Self {
            index,
            name: name.to_owned(),
            encapsulation: Encapsulation::Vxlan(port),
            owner: Owner::Unknown,
            vni: Some(vni),
            local: None,
            address: None,
            mac: None,
            mtu: 1450,
            up: true,
            underlay: None,
            learning: false,
            collect_metadata: false,
            remote: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Ipip, LinkCounters};

    fn link(index: u32, name: &str, kind: LinkKind) -> Link {
        Link {
            index: IfIndex(index),
            name: name.to_owned(),
            kind,
            mac: None,
            mtu: 1480,
            admin_up: true,
            carrier: true,
            master: None,
            counters: LinkCounters::default(),
        }
    }

    #[test]
    fn a_peers_own_tunnel_without_an_address_sends_from_the_bridge_to_pods() {
        let to_peer =
            LinkKind::Ipip(Ipip { remote: Some([10, 0, 0, 12].into()), ..Ipip::default() });
        let to_any = LinkKind::Ipip(Ipip::default());
        let all = [
            link(2, "docker0", LinkKind::Bridge),
            link(3, "kube-bridge", LinkKind::Bridge),
            link(4, "tun-0000000000c", to_peer),
            link(5, "tunl0", to_any),
        ];
        let links: BTreeMap<_, _> = all.into_iter().map(|link| (link.index, link)).collect();
        let on =
            |index: u32, net: &str| Address { index: IfIndex(index), net: net.parse().unwrap() };
        let mut addresses = vec![on(2, "172.17.0.1/16"), on(3, "10.42.1.1/24")];
        let of = |addresses: &[Address]| -> Vec<_> {
            tunnels(&links, addresses).iter().map(|it| (it.address, it.only_peer())).collect()
        };
        let peer = Some(PeerId([10, 0, 0, 12].into()));
        let bridge: Option<IpAddr> = Some([10, 42, 1, 1].into());
        assert_eq!(of(&addresses), [(bridge, peer), (None, None)]);
        addresses.push(on(4, "10.9.0.1/31"));
        assert_eq!(of(&addresses)[0].0, Some([10, 9, 0, 1].into()));
    }

    #[test]
    fn a_tunnel_that_is_off_is_missed_unless_it_is_the_kernels_own() {
        let to_peer = Ipip { remote: Some([10, 0, 0, 12].into()), ..Ipip::default() };
        let all = [
            link(2, "tunl0", LinkKind::Ipip(Ipip::default())),
            link(3, "tun-0000a00000c", LinkKind::Ipip(to_peer)),
        ];
        let off = |link: Link| (link.index, Link { admin_up: false, ..link });
        let found = tunnels(&all.map(off).into_iter().collect(), &[]);
        let names: Vec<_> = found.iter().map(|it| (it.name.as_str(), it.up)).collect();
        assert_eq!(names, [("tun-0000a00000c", false)]);
    }
}
