//! RTM_NEWLINK to a link (struct ifinfomsg, linux/if_link.h).

use std::net::IpAddr;

use netlink_packet_core::{
    NlaBuffer, NlasIterator, Parseable, ParseableParametrized, parse_u32, parse_u64,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    InfoIpTunnel, InfoKind, InfoVxlan, LinkFlags, LinkHeader, LinkLayerType,
};
use overlaywatch_core::model::{IfIndex, Ipip, Link, LinkCounters, LinkKind, Mac, Vxlan};

use super::Malformed;

/// Bytes of `struct ifinfomsg`.
const HEADER_BYTES: usize = 16;

/// The link that a message tells of; none for what a bridge says of its
/// ports (family AF_BRIDGE), whose removal is not the removal of the device.
///
/// The attributes are walked here and only those needed are decoded: a link's
/// message carries some sixty, among them each protocol's settings.
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn link(payload: &[u8]) -> Result<Option<Link>, Malformed> {
    let header = LinkHeader::parse(payload)?;
    if header.interface_family != AddressFamily::Unspec {
        return Ok(None);
    }
    let mut link = Link {
        index: IfIndex(header.index),
        name: String::new(),
        kind: match header.link_layer_type {
            LinkLayerType::Loopback => LinkKind::Loopback,
            _ => LinkKind::Plain,
        },
        mac: None,
        mtu: 0,
        admin_up: header.flags.contains(LinkFlags::Up),
        carrier: header.flags.contains(LinkFlags::LowerUp),
        master: None,
        counters: LinkCounters::default(),
    };
    for attribute in NlasIterator::new(payload.get(HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            libc::IFLA_MTU => link.mtu = parse_u32(value)?,
            libc::IFLA_MASTER => link.master = Some(IfIndex(parse_u32(value)?)),
            libc::IFLA_STATS64 => link.counters = counters(value)?,
            libc::IFLA_LINKINFO => {
                if let Some(kind) = kind(value)? {
                    link.kind = kind;
                }
            }
            _ => {}
        }
    }
    if link.name.is_empty() { Err(Malformed::lacks("a name")) } else { Ok(Some(link)) }
}

/// Device names are bytes to the kernel: anything but `/`, `:` and white space.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// `struct rtnl_link_stats64`: counters of 64 bits, in this order, with more
/// at the end of each later kernel's.
fn counters(value: &[u8]) -> Result<LinkCounters, Malformed> {
    let at = |position: usize| {
        let bytes = value.get(position * 8..position * 8 + 8);
        Ok::<u64, Malformed>(parse_u64(bytes.ok_or_else(|| Malformed::lacks("all counters"))?)?)
    };
    Ok(LinkCounters {
        rx_packets: at(0)?,
        tx_packets: at(1)?,
        rx_bytes: at(2)?,
        tx_bytes: at(3)?,
        rx_errors: at(4)?,
        tx_errors: at(5)?,
        rx_dropped: at(6)?,
        tx_dropped: at(7)?,
        rx_missed: at(15)?,
        tx_carrier_errors: at(17)?,
    })
}

/// The kind from the two attributes inside `IFLA_LINKINFO`; none for a device
/// that only says whose port it is (`IFLA_INFO_SLAVE_KIND`).
fn kind(info: &[u8]) -> Result<Option<LinkKind>, Malformed> {
    let (mut kind, mut data) = (None, &[][..]);
    for attribute in NlasIterator::new(info) {
        let attribute: NlaBuffer<&[u8]> = attribute?;
        let range = attribute.into_inner().get(4..usize::from(attribute.length()));
        match attribute.kind() {
            libc::IFLA_INFO_KIND => kind = Some(text(attribute.value())),
            libc::IFLA_INFO_DATA => data = range.unwrap_or_default(),
            _ => {}
        }
    }
    let Some(kind) = kind else { return Ok(None) };
    Ok(Some(match kind.as_str() {
        "vxlan" => LinkKind::Vxlan(vxlan(data)?),
        "ipip" => LinkKind::Ipip(ipip(data)?),
        "bridge" => LinkKind::Bridge,
        "veth" => LinkKind::Veth,
        "vlan" => LinkKind::Vlan,
        "bond" | "team" => LinkKind::Bond,
        "wireguard" => LinkKind::Wireguard,
        _ => LinkKind::Other(kind),
    }))
}

fn vxlan(data: &[u8]) -> Result<Vxlan, Malformed> {
    let mut vxlan = Vxlan::default();
    for attribute in NlasIterator::new(data) {
        match InfoVxlan::parse(&attribute?)? {
            InfoVxlan::Id(vni) => vxlan.vni = vni,
            InfoVxlan::Port(port) => vxlan.port = port,
            InfoVxlan::Local(local) => vxlan.local = given(local.into()),
            InfoVxlan::Local6(local) => vxlan.local = given(local.into()),
            InfoVxlan::Group(group) => vxlan.group = given(group.into()),
            InfoVxlan::Group6(group) => vxlan.group = given(group.into()),
            InfoVxlan::Link(index) => vxlan.underlay = device(index),
            InfoVxlan::Learning(on) => vxlan.learning = on,
            InfoVxlan::CollectMetadata(on) => vxlan.collect_metadata = on,
            _ => {}
        }
    }
    Ok(vxlan)
}

fn ipip(data: &[u8]) -> Result<Ipip, Malformed> {
    let v4 = |address| match given(address) {
        Some(IpAddr::V4(v4)) => Some(v4),
        Some(IpAddr::V6(_)) | None => None,
    };
    let mut ipip = Ipip::default();
    for attribute in NlasIterator::new(data) {
        match InfoIpTunnel::parse_with_param(&attribute?, InfoKind::IpIp)? {
            InfoIpTunnel::Local(local) => ipip.local = v4(local),
            InfoIpTunnel::Remote(remote) => ipip.remote = v4(remote),
            InfoIpTunnel::Link(index) => ipip.underlay = device(index),
            InfoIpTunnel::CollectMetadata => ipip.collect_metadata = true,
            _ => {}
        }
    }
    Ok(ipip)
}

/// The kernel writes "any" where an administrator gave nothing.
fn given(address: IpAddr) -> Option<IpAddr> {
    (!address.is_unspecified()).then_some(address)
}

/// The kernel writes 0 where a tunnel is bound to no device.
fn device(index: u32) -> Option<IfIndex> {
    (index != 0).then_some(IfIndex(index))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;
    use netlink_packet_route::link::{InfoData, LinkAttribute, LinkInfo, LinkMessage};

    use super::*;

    fn message(kind: InfoKind, data: InfoData) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        message.attributes = vec![
            LinkAttribute::IfName("tunl0".to_owned()),
            LinkAttribute::Mtu(1480),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]),
        ];
        message
    }

    fn bytes(message: &LinkMessage) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    #[test]
    fn the_ipip_device_that_calico_uses() {
        let data = vec![
            InfoIpTunnel::Link(0),
            InfoIpTunnel::Local([0, 0, 0, 0].into()),
            InfoIpTunnel::Remote([0, 0, 0, 0].into()),
            InfoIpTunnel::Ttl(0),
        ];
        let found = link(&bytes(&message(InfoKind::IpIp, InfoData::IpTunnel(data))));
        let found = found.unwrap().unwrap();
        assert_eq!((found.name.as_str(), found.mtu, found.admin_up), ("tunl0", 1480, true));
        assert_eq!(found.kind, LinkKind::Ipip(Ipip::default()));
    }

    #[test]
    fn an_ipip_device_from_one_address_to_another() {
        let data = vec![
            InfoIpTunnel::Link(2),
            InfoIpTunnel::Local([10, 0, 0, 1].into()),
            InfoIpTunnel::Remote([10, 0, 0, 2].into()),
        ];
        let found = link(&bytes(&message(InfoKind::IpIp, InfoData::IpTunnel(data))));
        let expected = Ipip {
            local: Some([10, 0, 0, 1].into()),
            remote: Some([10, 0, 0, 2].into()),
            underlay: Some(IfIndex(2)),
            collect_metadata: false,
        };
        assert_eq!(found.unwrap().unwrap().kind, LinkKind::Ipip(expected));
    }

    #[test]
    fn a_message_cut_short_is_an_error_or_a_lesser_link_but_never_a_panic() {
        let data = InfoData::Vxlan(vec![InfoVxlan::Id(1), InfoVxlan::Port(8472)]);
        let whole = bytes(&message(InfoKind::Vxlan, data));
        let expected = Vxlan { vni: 1, port: 8472, ..Vxlan::default() };
        assert_eq!(link(&whole).unwrap().unwrap().kind, LinkKind::Vxlan(expected));
        for length in 0..whole.len() {
            let cut = link(&whole[..length]);
            // Cut between two attributes it is a message without the later ones.
            let is_between = cut.as_ref().is_ok_and(Option::is_some);
            assert!(cut.is_err() || is_between, "cut to {length}: {cut:?}");
        }
    }

    #[test]
    fn what_a_bridge_says_of_its_port_is_no_link() {
        let mut message = message(InfoKind::Veth, InfoData::Other(Vec::new()));
        message.header.interface_family = AddressFamily::Bridge;
        assert!(link(&bytes(&message)).unwrap().is_none());
    }
}
