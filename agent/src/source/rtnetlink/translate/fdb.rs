//! RTM_NEWNEIGH of family AF_BRIDGE to a forwarding entry of a VXLAN device
//! (vxlan_fdb_info, drivers/net/vxlan/vxlan_core.c).

use netlink_packet_core::{Parseable, parse_ip};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use overlaywatch_core::model::{FdbEntry, FdbKey, IfIndex, Mac};

use super::Malformed;

/// The forwarding entry that a message tells of; none for a neighbour and for
/// an entry that a bridge keeps for one of its ports (`NDA_MASTER`).
///
/// What has an outer destination is a VXLAN device's; an entry without one may
/// be any device's own list of addresses: the caller knows the devices.
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn fdb(payload: &[u8]) -> Result<Option<FdbEntry>, Malformed> {
    // Events of neighbours come by the same group: not worth parsing.
    if payload.first().map(|&family| i32::from(family)) != Some(libc::AF_BRIDGE) {
        return Ok(None);
    }
    let message = NeighbourMessage::parse(payload)?;
    let (mut mac, mut destination, mut vni, mut port) = (None, None, None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Controller(_) => return Ok(None),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(Mac),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                destination = Some(parse_ip(&bytes)?);
            }
            NeighbourAttribute::Vni(own) => vni = Some(own),
            NeighbourAttribute::Port(own) => port = Some(own),
            _ => {}
        }
    }
    // Entries of InfiniBand and the like have longer addresses.
    let Some(mac) = mac else { return Ok(None) };
    Ok(Some(FdbEntry {
        key: FdbKey { index: IfIndex(message.header.ifindex), mac, destination },
        permanent: u16::from(message.header.state) & libc::NUD_PERMANENT != 0,
        vni,
        port,
    }))
}
