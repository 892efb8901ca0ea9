//! Addresses, routes and policy rules.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::IfIndex;
use crate::time::Mono;

/// Routing tables with a fixed number (linux/rtnetlink.h).
pub mod table {
    /// What is asked last; empty as a rule.
    pub const DEFAULT: u32 = 253;
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
    /// It chooses by something that is not said here, too (device, protocol,
    /// ports, user, `not`), or refuses what it found (`suppress_prefixlength`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub selective: bool,
}

impl fmt::Display for PolicyRule {
    /// As ip-rule(8) writes it, as far as it is known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.priority)?;
        match self.from {
            Some(net) => write!(f, " from {net}"),
            None => f.write_str(" from all"),
        }?;
        if let Some(net) = self.to {
            write!(f, " to {net}")?;
        }
        if let Some((value, mask)) = self.mark {
            write!(f, " fwmark {value:#x}/{mask:#x}")?;
        }
        if self.selective {
            f.write_str(" with further conditions")?;
        }
        self.table.map_or(Ok(()), |table| write!(f, " lookup {table}"))
    }
}

/// A route into a tunnel that was there, went, and is not back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VanishedRoute {
    /// Its destination.
    pub destination: IpNet,
    /// The tunnel device that it led into.
    pub device: IfIndex,
    /// When it was seen to be gone.
    pub at: Mono,
}

/// All routes, ordered by table and destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTable(pub BTreeMap<RouteKey, Route>);

impl RouteTable {
    /// The most specific route of `table` that covers `address`, of the lowest
    /// metric; the kernel's longest-prefix match without policy rules.
    #[must_use]
    pub fn lookup(&self, table: u32, address: IpAddr) -> Option<&Route> {
        // Prefixes are ordered by address, then length. The last one at or before
        // the bound either covers the address, and is then the most specific, or
        // whatever covers the address covers it as well, and is no longer than
        // the bits that the two have in common.
        let mut bound = IpNet::from(address);
        loop {
            let last = RouteKey { table, destination: bound, metric: u32::MAX, tos: u8::MAX };
            let (nearest, _) = self.0.range(..=last).next_back()?;
            let destination = nearest.destination;
            if nearest.table != table || destination.addr().is_ipv4() != address.is_ipv4() {
                return None;
            }
            if destination.contains(&address) {
                let first = RouteKey { table, destination, metric: 0, tos: 0 };
                return self.0.range(first..).map(|(_, route)| route).next();
            }
            let shared = common_bits(destination.addr(), address);
            bound = IpNet::new(address, shared).ok()?.trunc();
        }
    }
}

/// Leading bits that two addresses of one family have in common.
fn common_bits(a: IpAddr, b: IpAddr) -> u8 {
    let bits = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => 0,
    };
    u8::try_from(bits).unwrap_or(u8::MAX)
}

/// How many routes of the main table are of a kind, and one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteCount {
    /// How many.
    pub count: u32,
    /// The first of them, in order of address: of IPv4, if any is.
    pub first: IpNet,
    /// The last of them: of IPv6, if any is.
    pub last: IpNet,
}

/// A route table in few words: what of it is whose. Made once for a table, since
/// tables can be large.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteDigest {
    /// Routes of the main table by device, who installed them, and whether they
    /// lead somewhere.
    pub by_origin: BTreeMap<(Option<IfIndex>, u8, bool), RouteCount>,
    /// Those of them that are IPv4 and not within the network that was asked for.
    pub outside: BTreeMap<(Option<IfIndex>, u8, bool), RouteCount>,
}

impl RouteDigest {
    /// The digest of a table; `within` is the network that routes may be outside of.
    #[must_use]
    pub fn of(routes: &RouteTable, within: Option<IpNet>) -> Self {
        let mut digest = Self::default();
        for route in routes.0.values().filter(|route| route.key.table == table::MAIN) {
            let net = route.key.destination;
            let origin =
                (route.next_hop.device, route.protocol, matches!(route.kind, RouteKind::Unicast));
            let note = |counts: &mut BTreeMap<_, RouteCount>| {
                let new = RouteCount { count: 0, first: net, last: net };
                let known = counts.entry(origin).or_insert(new);
                known.count = known.count.saturating_add(1);
                known.first = known.first.min(net);
                known.last = known.last.max(net);
            };
            note(&mut digest.by_origin);
            let is_apart = |within: IpNet| !within.contains(&net) && !net.contains(&within);
            if net.addr().is_ipv4() && within.is_some_and(is_apart) {
                note(&mut digest.outside);
            }
        }
        digest
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn route(table: u32, destination: IpNet, metric: u32) -> Route {
        Route {
            key: RouteKey { table, destination: destination.trunc(), metric, tos: 0 },
            kind: RouteKind::Unicast,
            protocol: protocol::STATIC,
            source: None,
            next_hop: NextHop::default(),
            more_next_hops: Vec::new(),
        }
    }

    /// Addresses with few free bits, so that prefixes nest and meet.
    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0_u32..64).prop_map(|n| Ipv4Addr::from_bits(n << 27 | n << 2).into()),
            (0_u128..64).prop_map(|n| Ipv6Addr::from_bits(n << 123 | n << 3).into()),
        ]
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        (address(), 0_u8..=128).prop_map(|(address, length)| {
            IpNet::new(address, length.min(if address.is_ipv4() { 32 } else { 128 })).unwrap()
        })
    }

    proptest! {
        #[test]
        fn finds_what_a_scan_finds(
            routes in prop::collection::vec((252_u32..255, prefix(), 0_u32..3), 0..40),
            to in address(),
        ) {
            let all = routes.into_iter().map(|(table, net, metric)| route(table, net, metric));
            let table = RouteTable(all.map(|route| (route.key, route)).collect());
            let scanned = table
                .0
                .values()
                .filter(|r| r.key.table == 253 && r.key.destination.contains(&to))
                .max_by_key(|r| (r.key.destination.prefix_len(), std::cmp::Reverse(r.key.metric)));
            prop_assert_eq!(table.lookup(253, to), scanned);
        }
    }
}
