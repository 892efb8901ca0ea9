//! RTM_NEWADDR to an address (struct ifaddrmsg, linux/if_addr.h).

use netlink_packet_core::Parseable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use overlaywatch_core::model::{Address, IfIndex};

use super::{Malformed, prefix};

/// The address that a message tells of.
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn address(payload: &[u8]) -> Result<Option<Address>, Malformed> {
    let message = AddressMessage::parse(payload)?;
    if !matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return Ok(None);
    }
    // On a link with a far end IFA_ADDRESS is the far end's and IFA_LOCAL
    // one's own; without one, IPv6 sends IFA_ADDRESS alone.
    let (mut own, mut any) = (None, None);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(address) => own = Some(address),
            AddressAttribute::Address(address) => any = Some(address),
            _ => {}
        }
    }
    let address = own.or(any).ok_or_else(|| Malformed::lacks("an address"))?;
    let net = prefix(address, message.header.prefix_len)?;
    Ok(Some(Address { index: IfIndex(message.header.index), net }))
}
