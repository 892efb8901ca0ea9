//! Bytes in, model out: pure functions of one message's payload.
//!
//! Each returns none for a message that is not about its subject (another
//! address family, a cached route) and an error for one that cannot be what
//! the kernel writes. Attributes nobody here asks for are skipped unread, so
//! that a newer kernel's additions blind nobody.

mod address;
mod fdb;
mod link;
mod neighbour;
mod route;
mod rule;

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::DecodeError;

pub use address::address;
pub use fdb::fdb;
pub use link::link;
pub use neighbour::neighbour;
pub use route::route;
pub use rule::rule;

/// A message that the kernel would not write like this.
#[derive(Debug, thiserror::Error)]
#[error("a message that makes no sense: {0}")]
pub struct Malformed(String);

impl From<DecodeError> for Malformed {
    fn from(error: DecodeError) -> Self {
        Self(error.to_string())
    }
}

impl Malformed {
    fn lacks(what: &str) -> Self {
        Self(format!("without {what}"))
    }
}

/// A prefix; the kernel's lengths are within the family's.
fn prefix(address: IpAddr, length: u8) -> Result<IpNet, Malformed> {
    IpNet::new(address, length).map_err(|_| Malformed(format!("{address} with /{length}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every translation, of bytes that anybody might have written.
    fn survive(bytes: &[u8]) {
        let _ = address(bytes);
        let _ = fdb(bytes);
        let _ = link(bytes);
        let _ = neighbour(bytes);
        let _ = route(bytes);
        let _ = rule(bytes);
    }

    /// An attribute of any kind, in the lengths that make decoders look twice.
    fn attribute(inner: BoxedStrategy<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
        (0..70_u16, inner, -3..4_i32).prop_map(|(kind, value, lie)| {
            let length = i32::try_from(value.len() + 4).unwrap() + i32::from(lie == 3);
            let mut bytes = u16::try_from(length).unwrap().to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        })
    }

    fn value() -> BoxedStrategy<Vec<u8>> {
        let length = prop_oneof![
            Just(0_usize),
            Just(1),
            Just(2),
            Just(4),
            Just(6),
            Just(8),
            Just(16),
            Just(200),
            0..64_usize
        ];
        length.prop_flat_map(|length| prop::collection::vec(any::<u8>(), length)).boxed()
    }

    fn attributes(inner: BoxedStrategy<Vec<u8>>) -> BoxedStrategy<Vec<u8>> {
        prop::collection::vec(attribute(inner), 0..6).prop_map(|all| all.concat()).boxed()
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            survive(&bytes);
        }

        #[test]
        fn messages_that_look_right_are_survived(
            family in prop_oneof![Just(0_u8), Just(2), Just(7), Just(10)],
            header in prop::collection::vec(any::<u8>(), 7..16),
            body in attributes(prop_oneof![value(), attributes(value())].boxed()),
            cut in 0..8_usize,
        ) {
            let mut bytes = [vec![family], header, body].concat();
            survive(&bytes);
            bytes.truncate(bytes.len().saturating_sub(cut));
            survive(&bytes);
        }
    }

    #[test]
    fn a_prefix_longer_than_its_family_is_refused() {
        let address = IpAddr::from([10, 0, 0, 1]);
        assert!(prefix(address, 32).is_ok());
        assert!(prefix(address, 33).is_err());
    }
}
