//! The answer to RTM_GETROUTE for one address to the model (struct rtmsg,
//! linux/rtnetlink.h).

use std::net::IpAddr;

use netlink_packet_core::{DecodeError, NlasIterator, parse_ip, parse_u32};
use overlaywatch_core::model::{FoundRoute, IfIndex, RouteAnswer, RouteKind};

/// Bytes of `struct rtmsg`.
const HEADER_BYTES: usize = 12;
/// Where the error is in `struct rta_cacheinfo`.
const ERROR_AT: usize = 12;

/// Why an answer cannot be the kernel's.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// It is too short.
    #[error("an answer of {0} bytes lacks a whole header")]
    Short(usize),
    /// An attribute is none.
    #[error(transparent)]
    Attribute(#[from] DecodeError),
}

/// What an RTM_NEWROUTE message that answers a question for one address says.
///
/// IPv6 answers also where it refuses, with a route that carries the error
/// (rt6_fill_node, net/ipv6/route.c).
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn answer(payload: &[u8]) -> Result<RouteAnswer, Malformed> {
    let Some((header, attributes)) = payload.split_first_chunk::<HEADER_BYTES>() else {
        return Err(Malformed::Short(payload.len()));
    };
    let [_family, _length, _source_length, _tos, table, _protocol, _scope, kind, _flags @ ..] =
        *header;
    let mut found = FoundRoute {
        table: table.into(),
        kind: route_kind(kind),
        device: None,
        gateway: None,
        source: None,
    };
    let mut errno = 0;
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            libc::RTA_TABLE => found.table = parse_u32(value)?,
            libc::RTA_OIF => found.device = Some(IfIndex(parse_u32(value)?)),
            libc::RTA_GATEWAY => found.gateway = Some(parse_ip(value)?),
            // `struct rtvia`: a 16-bit family, then the address.
            libc::RTA_VIA => found.gateway = value.get(2..).and_then(|ip| parse_ip(ip).ok()),
            libc::RTA_PREFSRC => found.source = Some(parse_ip(value)?),
            libc::RTA_CACHEINFO => errno = error(value),
            _ => {}
        }
    }
    Ok(if errno < 0 {
        RouteAnswer::Refused { errno: errno.saturating_neg() }
    } else {
        RouteAnswer::Found(found)
    })
}

fn error(cache_info: &[u8]) -> i32 {
    let bytes = cache_info.get(ERROR_AT..).and_then(<[u8]>::first_chunk);
    bytes.copied().map_or(0, i32::from_ne_bytes)
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

/// The family's number and the bytes of an address.
pub(super) fn parts(address: IpAddr) -> (i32, Vec<u8>) {
    match address {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![2, 32, 0, 0, 254, 0, 0, kind, 0, 0, 0, 0];
        for (number, value) in attributes {
            crate::source::ask::attribute(&mut bytes, *number, value);
        }
        bytes
    }

    #[test]
    fn the_way_is_read_from_the_attributes() {
        let bytes = message(
            libc::RTN_UNICAST,
            &[
                (libc::RTA_TABLE, &1000_u32.to_ne_bytes()),
                (libc::RTA_OIF, &3_u32.to_ne_bytes()),
                (libc::RTA_GATEWAY, &[10, 42, 1, 0]),
                (libc::RTA_PREFSRC, &[10, 42, 0, 0]),
                (libc::RTA_CACHEINFO, &[0; 32]),
            ],
        );
        let found = FoundRoute {
            table: 1000,
            kind: RouteKind::Unicast,
            device: Some(IfIndex(3)),
            gateway: Some([10, 42, 1, 0].into()),
            source: Some([10, 42, 0, 0].into()),
        };
        assert_eq!(answer(&bytes).unwrap(), RouteAnswer::Found(found));
    }

    #[test]
    fn an_error_within_a_route_is_a_refusal() {
        let mut info = [0; 32];
        info[12..16].copy_from_slice(&(-libc::ENETUNREACH).to_ne_bytes());
        let bytes = message(libc::RTN_UNREACHABLE, &[(libc::RTA_CACHEINFO, &info)]);
        let refused = RouteAnswer::Refused { errno: libc::ENETUNREACH };
        assert_eq!(answer(&bytes).unwrap(), refused);
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let bytes = message(libc::RTN_UNICAST, &[(libc::RTA_OIF, &[3, 0, 0, 0])]);
        assert!(answer(&bytes[..11]).is_err());
        assert!(answer(&bytes[..bytes.len() - 1]).is_err());
    }
}
