//! Addresses, routes and policy rules.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::IfIndex;

/// Routing tables with a fixed number (linux/rtnetlink.h).
pub mod table {
    /// The main table.
    pub const MAIN: u32 = 254;
    /// Local and broadcast addresses, kept by the kernel.
    pub const LOCAL: u32 = 255;
}

/// Who installed a route (`RTPROT_*`, linux/rtnetlink.h).
pub mod protocol {
    /// The kernel itself.
    pub const KERNEL: u8 = 2;
    /// `ip route` without a protocol; flannel uses it.
    pub const BOOT: u8 = 3;
    /// An administrator.
    pub const STATIC: u8 = 4;
    /// The BIRD daemon (Calico's BGP).
    pub const BIRD: u8 = 12;
    /// kube-router.
    pub const KUBE_ROUTER: u8 = 17;
    /// Calico's Felix.
    pub const FELIX: u8 = 80;
}

/// An address on a device (RTM_NEWADDR).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// The device.
    pub index: IfIndex,
    /// The address with its prefix length.
    pub net: IpNet,
}

impl Address {
    /// Whether it only means something on its own link (fe80::/10, 169.254.0.0/16).
    #[must_use]
    pub fn is_link_local(&self) -> bool {
        match self.net.addr() {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        }
    }
}

/// What identifies a route within one namespace: a second route with the same
/// key replaces the first (`NLM_F_REPLACE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RouteKey {
    /// Table number.
    pub table: u32,
    /// Destination prefix.
    pub destination: IpNet,
    /// Metric (`RTA_PRIORITY`); lower wins.
    pub metric: u32,
    /// Type of service.
    pub tos: u8,
}

/// What a route does with packets (`RTN_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteKind {
    /// Sends them on.
    Unicast,
    /// Delivers them here.
    Local,
    /// Drops them silently.
    Blackhole,
    /// Drops them and answers ICMP host unreachable.
    Unreachable,
    /// Drops them and answers ICMP administratively prohibited.
    Prohibit,
    /// Goes on with the next policy rule.
    Throw,
    /// Anything else (broadcast, anycast, multicast, ...), by its number.
    Other(u8),
}

/// One way out of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// The gateway, if there is one.
    pub gateway: Option<IpAddr>,
    /// The device.
    pub device: Option<IfIndex>,
    /// The gateway is taken to be on the link (`RTNH_F_ONLINK`).
    pub onlink: bool,
}

/// A route (RTM_NEWROUTE).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Its identity.
    pub key: RouteKey,
    /// What it does.
    pub kind: RouteKind,
    /// Who installed it: see [`protocol`].
    pub protocol: u8,
    /// Preferred source address (`RTA_PREFSRC`).
    pub source: Option<IpAddr>,
    /// The way out, the first one where there are several.
    pub next_hop: NextHop,
    /// Further ways out of a multipath route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_next_hops: Vec<NextHop>,
}

/// A policy rule (RTM_NEWRULE), as far as table selection goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Priority; lower is asked first.
    pub priority: u32,
    /// The table that it names; none for actions other than a lookup.
    pub table: Option<u32>,
    /// Only packets from here.
    pub from: Option<IpNet>,
    /// Only packets to here.
    pub to: Option<IpNet>,
    /// Only packets with this firewall mark, as (value, mask).
    pub mark: Option<(u32, u32)>,
    /// IPv6 rather than IPv4.
    pub v6: bool,
}

/// All routes, ordered by table and destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTable(pub BTreeMap<RouteKey, Route>);

impl RouteTable {
    /// The most specific route of `table` that covers `address`, of the lowest
    /// metric; the kernel's longest-prefix match without policy rules.
    #[must_use]
    pub fn lookup(&self, table: u32, address: IpAddr) -> Option<&Route> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (0..=longest).rev().find_map(|length| {
            let destination = IpNet::new(address, length).ok()?.trunc();
            let first = RouteKey { table, destination, metric: 0, tos: 0 };
            let last = RouteKey { metric: u32::MAX, tos: u8::MAX, ..first };
            self.0.range(first..=last).map(|(_, route)| route).next()
        })
    }
}

impl Serialize for RouteTable {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.values())
    }
}

impl<'de> Deserialize<'de> for RouteTable {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let routes = Vec::<Route>::deserialize(deserializer)?;
        Ok(Self(routes.into_iter().map(|route| (route.key, route)).collect()))
    }
}
