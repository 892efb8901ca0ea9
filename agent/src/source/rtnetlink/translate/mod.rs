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
