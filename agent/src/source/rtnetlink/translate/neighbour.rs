//! RTM_NEWNEIGH of IPv4 and IPv6 to a neighbour (struct ndmsg, linux/neighbour.h).

use std::net::IpAddr;

use netlink_packet_core::Parseable;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use overlaywatch_core::model::{IfIndex, Mac, Neighbour, NeighbourState};

use super::Malformed;

/// The neighbour that a message tells of; none for a bridge's forwarding
/// entry, for an entry that answers on another's behalf, and for a multicast
/// address: those the kernel makes as it needs them, and tells nobody.
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn neighbour(payload: &[u8]) -> Result<Option<Neighbour>, Malformed> {
    // Events of forwarding entries come by the same group: not worth parsing.
    if !payload.first().is_some_and(|&family| is_ip(family)) {
        return Ok(None);
    }
    let message = NeighbourMessage::parse(payload)?;
    if message.header.flags.bits() & libc::NTF_PROXY != 0 {
        return Ok(None);
    }
    let (mut address, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.try_into().ok().map(Mac);
            }
            _ => {}
        }
    }
    let address = address.ok_or_else(|| Malformed::lacks("an address"))?;
    if address.is_multicast() {
        return Ok(None);
    }
    let index = IfIndex(message.header.ifindex);
    Ok(Some(Neighbour { index, address, mac, state: state(message.header.state.into()) }))
}

fn is_ip(family: u8) -> bool {
    i32::from(family) == libc::AF_INET || i32::from(family) == libc::AF_INET6
}

fn state(bits: u16) -> NeighbourState {
    let is = |mask: u16| bits & mask != 0;
    if is(libc::NUD_PERMANENT | libc::NUD_NOARP) {
        NeighbourState::Permanent
    } else if is(libc::NUD_REACHABLE) {
        NeighbourState::Reachable
    } else if is(libc::NUD_STALE | libc::NUD_DELAY | libc::NUD_PROBE) {
        NeighbourState::Stale
    } else if is(libc::NUD_INCOMPLETE) {
        NeighbourState::Incomplete
    } else if is(libc::NUD_FAILED) {
        NeighbourState::Failed
    } else {
        NeighbourState::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_usable_bit_of_a_state_wins() {
        assert_eq!(state(libc::NUD_PERMANENT | libc::NUD_FAILED), NeighbourState::Permanent);
        assert_eq!(state(libc::NUD_NOARP), NeighbourState::Permanent);
        assert_eq!(state(libc::NUD_REACHABLE | libc::NUD_STALE), NeighbourState::Reachable);
        assert_eq!(state(libc::NUD_DELAY), NeighbourState::Stale);
        assert_eq!(state(libc::NUD_PROBE), NeighbourState::Stale);
        assert_eq!(state(libc::NUD_INCOMPLETE), NeighbourState::Incomplete);
        assert_eq!(state(libc::NUD_FAILED), NeighbourState::Failed);
        assert_eq!(state(0), NeighbourState::None);
    }
}
