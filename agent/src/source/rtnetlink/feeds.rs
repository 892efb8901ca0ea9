//! The six subjects, and what the kernel does not tell of each.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_core::NLM_F_APPEND;
use overlaywatch_core::assembly::{Change, SourceId, Update};
use overlaywatch_core::model::{
    Address, FdbEntry, FdbKey, IfIndex, Link, LinkKind, Neighbour, PolicyRule, Route, RouteKey,
};
use rtnetlink::MulticastGroup;

use super::dump::Request;
use super::feed::{Common, Event, Feed};
use super::translate::{self, Malformed};

/// Bytes of the request headers (linux/rtnetlink.h, if_addr.h, neighbour.h, fib_rules.h).
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const RTMSG: usize = 12;
const NDMSG: usize = 12;
const FIB_RULE_HDR: usize = 12;

/// Address families in the one byte that they have here.
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;

/// `RTM_NEWNEXTHOP` and `RTM_DELNEXTHOP` (linux/rtnetlink.h).
const NEXT_HOP_EVENTS: [u16; 2] = [104, 105];

/// Links.
#[derive(Debug, Default)]
pub(super) struct Links;

impl Feed for Links {
    type Key = IfIndex;
    type Value = Link;
    const SOURCE: SourceId = SourceId::Links;
    const NEW: u16 = libc::RTM_NEWLINK;
    const REQUESTS: &'static [Request] = &[Request {
        what: "dumping links",
        kind: libc::RTM_GETLINK,
        family: AF_UNSPEC,
        header_bytes: IFINFOMSG,
    }];
    const GROUPS: &'static [MulticastGroup] = &[MulticastGroup::Link];

    fn translate(payload: &[u8]) -> Result<Option<Link>, Malformed> {
        translate::link(payload)
    }

    fn key(link: &Link) -> IfIndex {
        link.index
    }

    fn update(change: Change<IfIndex, Link>) -> Update {
        Update::Links(change)
    }

    fn dumped(&mut self, all: &mut Vec<Link>, common: &mut Common) {
        let vxlan = all.iter().filter(|link| is_vxlan(link)).map(|link| link.index).collect();
        if common.vxlan != vxlan {
            common.vxlan = vxlan;
            common.doubts.insert(SourceId::Fdb);
        }
    }

    fn heard(&mut self, event: Event<'_, Link>, common: &mut Common) -> bool {
        let link = event.value;
        // The IPv4 routes of a device that goes down or away go without a
        // word (fib_sync_down_dev and fib_flush, net/ipv4/fib_frontend.c).
        if event.gone || !link.admin_up {
            common.doubts.insert(SourceId::Routes);
        }
        let changed = match (is_vxlan(link), event.gone) {
            (true, false) => common.vxlan.insert(link.index),
            _ => common.vxlan.remove(&link.index),
        };
        if changed {
            common.doubts.insert(SourceId::Fdb);
        }
        true
    }
}

fn is_vxlan(link: &Link) -> bool {
    matches!(link.kind, LinkKind::Vxlan(_))
}

/// Addresses.
#[derive(Debug, Default)]
pub(super) struct Addresses;

impl Feed for Addresses {
    type Key = Address;
    type Value = Address;
    const SOURCE: SourceId = SourceId::Addresses;
    const NEW: u16 = libc::RTM_NEWADDR;
    const REQUESTS: &'static [Request] = &[Request {
        what: "dumping addresses",
        kind: libc::RTM_GETADDR,
        family: AF_UNSPEC,
        header_bytes: IFADDRMSG,
    }];
    const GROUPS: &'static [MulticastGroup] =
        &[MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];

    fn translate(payload: &[u8]) -> Result<Option<Address>, Malformed> {
        translate::address(payload)
    }

    fn key(address: &Address) -> Address {
        address.clone()
    }

    fn update(change: Change<Address, Address>) -> Update {
        Update::Addresses(change)
    }

    fn dumped(&mut self, all: &mut Vec<Address>, _common: &mut Common) {
        all.sort_unstable();
        all.dedup();
    }

    fn heard(&mut self, event: Event<'_, Address>, common: &mut Common) -> bool {
        if event.gone {
            // The same address may stay for another far end. And older kernels
            // remove the routes that preferred it as source without a word
            // (fib_sync_down_addr, net/ipv4/fib_semantics.c).
            common.doubts.extend([SourceId::Addresses, SourceId::Routes]);
        }
        true
    }
}

/// Routes of all tables.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// Keys that several routes share, or several ways out that go one by
    /// one: the removal of one does not say that none is left.
    shared: BTreeSet<RouteKey>,
}

impl Feed for Routes {
    type Key = RouteKey;
    type Value = Route;
    const SOURCE: SourceId = SourceId::Routes;
    const NEW: u16 = libc::RTM_NEWROUTE;
    const REQUESTS: &'static [Request] = &[
        Request {
            what: "dumping IPv4 routes",
            kind: libc::RTM_GETROUTE,
            family: AF_INET,
            header_bytes: RTMSG,
        },
        Request {
            what: "dumping IPv6 routes",
            kind: libc::RTM_GETROUTE,
            family: AF_INET6,
            header_bytes: RTMSG,
        },
    ];
    const GROUPS: &'static [MulticastGroup] =
        &[MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route, MulticastGroup::Nexthop];

    fn translate(payload: &[u8]) -> Result<Option<Route>, Malformed> {
        translate::route(payload)
    }

    fn key(route: &Route) -> RouteKey {
        route.key
    }

    fn update(change: Change<RouteKey, Route>) -> Update {
        Update::Routes(change)
    }

    /// Of several routes with one key (`ip route append`, and every device's
    /// own fe80::/64) the kernel uses the first, and dumps them one after the other.
    fn dumped(&mut self, all: &mut Vec<Route>, _common: &mut Common) {
        self.shared.clear();
        all.dedup_by(|next, first| {
            let same = next.key == first.key;
            if same {
                self.shared.insert(first.key);
            }
            same
        });
        self.shared.extend(all.iter().filter(|route| goes_in_parts(route)).map(|route| route.key));
    }

    fn heard(&mut self, event: Event<'_, Route>, common: &mut Common) -> bool {
        let route = event.value;
        let key = route.key;
        if event.gone {
            let is_shared = self.shared.contains(&key) || is_every_devices_own(&key);
            if is_shared {
                common.doubts.insert(SourceId::Routes);
            }
            return !is_shared;
        }
        if goes_in_parts(route) {
            self.shared.insert(key);
        }
        let is_behind_another = event.flags & NLM_F_APPEND != 0;
        if is_behind_another {
            self.shared.insert(key);
            common.doubts.insert(SourceId::Routes);
        }
        !is_behind_another
    }

    /// Routes follow the next-hop object they name without a word of their own.
    fn overheard(&mut self, kind: u16, common: &mut Common) {
        if NEXT_HOP_EVENTS.contains(&kind) {
            common.doubts.insert(SourceId::Routes);
        }
    }
}

/// The ways out of an IPv6 multipath route are routes of their own to the
/// kernel, which tells of the removal of each (fib6_del_route, net/ipv6/ip6_fib.c).
fn goes_in_parts(route: &Route) -> bool {
    route.key.destination.addr().is_ipv6() && !route.more_next_hops.is_empty()
}

/// Link-local and multicast prefixes, which each IPv6 device has a route for.
fn is_every_devices_own(key: &RouteKey) -> bool {
    match key.destination.addr() {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast(),
    }
}

/// Policy rules.
#[derive(Debug, Default)]
pub(super) struct Rules;

impl Feed for Rules {
    type Key = PolicyRule;
    type Value = PolicyRule;
    const SOURCE: SourceId = SourceId::Rules;
    const NEW: u16 = libc::RTM_NEWRULE;
    const REQUESTS: &'static [Request] = &[Request {
        what: "dumping policy rules",
        kind: libc::RTM_GETRULE,
        family: AF_UNSPEC,
        header_bytes: FIB_RULE_HDR,
    }];
    const GROUPS: &'static [MulticastGroup] = &[MulticastGroup::Ipv4Rule, MulticastGroup::Ipv6Rule];

    fn translate(payload: &[u8]) -> Result<Option<PolicyRule>, Malformed> {
        translate::rule(payload)
    }

    fn key(rule: &PolicyRule) -> PolicyRule {
        rule.clone()
    }

    fn update(change: Change<PolicyRule, PolicyRule>) -> Update {
        Update::Rules(change)
    }

    fn dumped(&mut self, all: &mut Vec<PolicyRule>, _common: &mut Common) {
        all.sort_unstable();
        all.dedup();
    }

    fn heard(&mut self, event: Event<'_, PolicyRule>, common: &mut Common) -> bool {
        if event.gone {
            // Its twin may stay: rules that differ only in what the model leaves out.
            common.doubts.insert(SourceId::Rules);
        }
        true
    }
}

/// Neighbours.
#[derive(Debug, Default)]
pub(super) struct Neighbours;

impl Feed for Neighbours {
    type Key = (IfIndex, IpAddr);
    type Value = Neighbour;
    const SOURCE: SourceId = SourceId::Neighbours;
    const NEW: u16 = libc::RTM_NEWNEIGH;
    const REQUESTS: &'static [Request] = &[Request {
        what: "dumping neighbours",
        kind: libc::RTM_GETNEIGH,
        family: AF_UNSPEC,
        header_bytes: NDMSG,
    }];
    const GROUPS: &'static [MulticastGroup] = &[MulticastGroup::Neigh];

    fn translate(payload: &[u8]) -> Result<Option<Neighbour>, Malformed> {
        translate::neighbour(payload)
    }

    fn key(neighbour: &Neighbour) -> (IfIndex, IpAddr) {
        (neighbour.index, neighbour.address)
    }

    fn update(change: Change<(IfIndex, IpAddr), Neighbour>) -> Update {
        Update::Neighbours(change)
    }
}

/// Forwarding entries of VXLAN devices.
#[derive(Debug, Default)]
pub(super) struct Fdb {
    known: BTreeSet<FdbKey>,
}

impl Fdb {
    /// Entries without an outer destination (of a next-hop group, of a
    /// metadata device) look like any Ethernet device's own address list.
    fn is_of_vxlan(entry: &FdbEntry, common: &Common) -> bool {
        entry.key.destination.is_some() || common.vxlan.contains(&entry.key.index)
    }
}

impl Feed for Fdb {
    type Key = FdbKey;
    type Value = FdbEntry;
    const SOURCE: SourceId = SourceId::Fdb;
    const NEW: u16 = libc::RTM_NEWNEIGH;
    const REQUESTS: &'static [Request] = &[Request {
        what: "dumping forwarding entries",
        kind: libc::RTM_GETNEIGH,
        family: AF_BRIDGE,
        header_bytes: NDMSG,
    }];
    const GROUPS: &'static [MulticastGroup] = &[MulticastGroup::Neigh];

    fn translate(payload: &[u8]) -> Result<Option<FdbEntry>, Malformed> {
        translate::fdb(payload)
    }

    fn key(entry: &FdbEntry) -> FdbKey {
        entry.key
    }

    fn update(change: Change<FdbKey, FdbEntry>) -> Update {
        Update::Fdb(change)
    }

    fn dumped(&mut self, all: &mut Vec<FdbEntry>, common: &mut Common) {
        all.retain(|entry| Self::is_of_vxlan(entry, common));
        self.known = all.iter().map(|entry| entry.key).collect();
    }

    fn heard(&mut self, event: Event<'_, FdbEntry>, common: &mut Common) -> bool {
        let entry = event.value;
        if !Self::is_of_vxlan(entry, common) {
            return false;
        }
        if event.gone {
            self.known.remove(&entry.key);
            return true;
        }
        // An entry that moves to another destination (`bridge fdb replace`, a
        // MAC learnt elsewhere) is told like one more destination of the same
        // MAC (vxlan_fdb_notify, drivers/net/vxlan/vxlan_core.c).
        let first = FdbKey { destination: None, ..entry.key };
        let has_another = self
            .known
            .range(first..)
            .take_while(|key| key.index == first.index && key.mac == first.mac)
            .any(|key| *key != entry.key);
        if has_another {
            common.doubts.insert(SourceId::Fdb);
        }
        self.known.insert(entry.key);
        true
    }
}
