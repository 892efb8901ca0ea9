//! RTM_NEWROUTE to a route (struct rtmsg, linux/rtnetlink.h).
//!
//! Written by hand, as one pass over the attributes that allocates nothing
//! but the further ways out of a multipath route: a node that speaks BGP may
//! hold half a million routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NlasIterator, parse_ip, parse_u32};
use overlaywatch_core::model::{IfIndex, NextHop, Route, RouteKey, RouteKind};

use super::{Malformed, prefix};

/// Bytes of `struct rtmsg`.
const HEADER_BYTES: usize = 12;
/// Bytes of `struct rtnexthop`.
const NEXT_HOP_BYTES: usize = 8;
/// `RTNH_F_ONLINK`: the gateway is taken to be on the link.
const ONLINK: u8 = 4;

/// The route that a message tells of. None for a cache entry
/// (`RTM_F_CLONED`), for a family other than IPv4 and IPv6, and for a route
/// that holds for some sources only (`RTA_SRC`): whoever took it for the route
/// to its destination would be wrong.
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn route(payload: &[u8]) -> Result<Option<Route>, Malformed> {
    let Some((header, attributes)) = payload.split_first_chunk::<HEADER_BYTES>() else {
        return Err(Malformed::lacks("a whole header"));
    };
    let [family, length, source_length, tos, table, protocol, _scope, kind, flags @ ..] = *header;
    let flags = u32::from_ne_bytes(flags);
    let any: IpAddr = match i32::from(family) {
        libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return Ok(None),
    };
    if source_length != 0 || flags & libc::RTM_F_CLONED != 0 {
        return Ok(None);
    }
    // A route's own flags share a word with the flags of its only way out.
    let mut next_hop = NextHop { onlink: flags & u32::from(ONLINK) != 0, ..NextHop::default() };
    let mut key = RouteKey { table: table.into(), destination: IpNet::from(any), metric: 0, tos };
    let (mut destination, mut source, mut more_next_hops) = (any, None, Vec::new());
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            libc::RTA_DST => destination = parse_ip(value)?,
            libc::RTA_TABLE => key.table = parse_u32(value)?,
            libc::RTA_PRIORITY => key.metric = parse_u32(value)?,
            libc::RTA_PREFSRC => source = Some(parse_ip(value)?),
            libc::RTA_OIF => next_hop.device = Some(IfIndex(parse_u32(value)?)),
            libc::RTA_GATEWAY => next_hop.gateway = Some(parse_ip(value)?),
            libc::RTA_VIA => next_hop.gateway = via(value),
            libc::RTA_MULTIPATH => (next_hop, more_next_hops) = multipath(value)?,
            _ => {}
        }
    }
    if destination.is_ipv4() != any.is_ipv4() {
        return Err(Malformed(format!("{destination} in a route of family {family}")));
    }
    key.destination = prefix(destination, length)?;
    let kind = route_kind(kind);
    Ok(Some(Route { key, kind, protocol, source, next_hop, more_next_hops }))
}

const fn route_kind(kind: u8) -> RouteKind {
    match kind {
        libc::RTN_UNICAST => RouteKind::Unicast,
        libc::RTN_LOCAL => RouteKind::Local,
        libc::RTN_BLACKHOLE => RouteKind::Blackhole,
        libc::RTN_UNREACHABLE => RouteKind::Unreachable,
        libc::RTN_PROHIBIT => RouteKind::Prohibit,
        libc::RTN_THROW => RouteKind::Throw,
        other => RouteKind::Other(other),
    }
}

/// `struct rtvia`: a gateway of another family than the route's, as a 16-bit
/// family and its bytes. Families without IP addresses (MPLS) give none.
fn via(value: &[u8]) -> Option<IpAddr> {
    parse_ip(value.get(2..)?).ok()
}

/// A sequence of `struct rtnexthop`, each with its own attributes.
fn multipath(mut value: &[u8]) -> Result<(NextHop, Vec<NextHop>), Malformed> {
    let mut hops = Vec::new();
    while let Some((header, _)) = value.split_first_chunk::<NEXT_HOP_BYTES>() {
        let [l0, l1, flags, _weight, index @ ..] = *header;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let attributes = value
            .get(NEXT_HOP_BYTES..length)
            .ok_or_else(|| Malformed(format!("a next hop of {length} bytes")))?;
        let device = Some(IfIndex(u32::from_ne_bytes(index)));
        let mut hop = NextHop { gateway: None, device, onlink: flags & ONLINK != 0 };
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute?;
            match attribute.kind() {
                libc::RTA_GATEWAY => hop.gateway = Some(parse_ip(attribute.value())?),
                libc::RTA_VIA => hop.gateway = via(attribute.value()),
                _ => {}
            }
        }
        hops.push(hop);
        // Next hops are aligned to four bytes, as attributes are (RTNH_ALIGN).
        value = value.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    if hops.is_empty() {
        return Err(Malformed::lacks("a single next hop in its multipath"));
    }
    let first = hops.remove(0);
    Ok((first, hops))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// `10.42.1.0/24` in the main table, of protocol boot, with `flags`.
    fn message(flags: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![2, 24, 0, 0, 254, 3, 0, libc::RTN_UNICAST];
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(attribute(libc::RTA_DST, &[10, 42, 1, 0]));
        bytes.extend(attributes.concat());
        bytes
    }

    #[test]
    fn cached_and_source_specific_routes_are_left_out() {
        assert!(route(&message(0, &[])).unwrap().is_some());
        assert!(route(&message(libc::RTM_F_CLONED, &[])).unwrap().is_none());
        let mut of_a_source = message(0, &[]);
        of_a_source[2] = 24;
        assert!(route(&of_a_source).unwrap().is_none());
    }

    #[test]
    fn an_unknown_attribute_harms_nothing() {
        let strange = attribute(0x3fff, &[1, 2, 3]);
        let found = route(&message(4, &[strange, attribute(libc::RTA_OIF, &7_u32.to_ne_bytes())]));
        let hop = found.unwrap().unwrap().next_hop;
        assert_eq!(hop, NextHop { gateway: None, device: Some(IfIndex(7)), onlink: true });
    }

    #[test]
    fn a_truncated_attribute_fails_the_message() {
        let mut bytes = message(0, &[attribute(libc::RTA_GATEWAY, &[10, 42, 1, 0])]);
        bytes.pop();
        assert!(route(&bytes).is_err());
    }

    #[test]
    fn a_next_hop_that_lies_about_its_length_fails_the_message() {
        let hop = |length: u16| {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend([ONLINK, 0, 3, 0, 0, 0]);
            attribute(libc::RTA_MULTIPATH, &bytes)
        };
        assert!(route(&message(0, &[hop(8)])).unwrap().unwrap().next_hop.onlink);
        assert!(route(&message(0, &[hop(7)])).is_err());
        assert!(route(&message(0, &[hop(9)])).is_err());
    }

    #[test]
    fn a_destination_of_the_wrong_family_is_refused() {
        let six = attribute(libc::RTA_DST, &[0x20; 16]);
        assert!(route(&message(0, &[six])).is_err());
    }
}
