//! Bytes in, names and numbers out.

use netlink_packet_core::{DecodeError, NlasIterator};

/// `struct ifinfomsg`, bytes.
const IFINFO_BYTES: usize = 16;
/// `struct genlmsghdr`, bytes.
const GENERIC_BYTES: usize = 4;
/// `IFLA_XDP`, and in it `IFLA_XDP_ATTACHED`, `_PROG_ID` and the three numbers by
/// mode, which came later (include/uapi/linux/if_link.h).
const XDP: u16 = 43;
const ATTACHED: u16 = 2;
const PROGRAM: u16 = 4;
const IN_DRIVER: u16 = 5;
const GENERIC: u16 = 6;
const IN_DEVICE: u16 = 7;
/// `CTRL_ATTR_FAMILY_ID` (include/uapi/linux/genetlink.h).
const FAMILY_ID: u16 = 1;
/// `ETHTOOL_A_FEATURES_ACTIVE` (include/uapi/linux/ethtool_netlink.h), and in it a
/// bit set: `ETHTOOL_A_BITSET_NOMASK`, `_BITS`; in those `_BITS_BIT`; in that
/// `_BIT_NAME` and `_BIT_VALUE`.
const ACTIVE: u16 = 4;
const NO_MASK: u16 = 1;
const BITS: u16 = 3;
const BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// `struct ethtool_drvinfo`, bytes: a command, five names of 32 bytes, and what
/// does not matter here.
pub const DRIVER_BYTES: usize = 196;
const NAME_BYTES: usize = 32;

/// Offloads that touch checksums and tunnels.
const OF_INTEREST: [&str; 12] = [
    "rx-checksum",
    "rx-gro",
    "rx-gro-hw",
    "rx-udp_tunnel-port-offload",
    "tx-checksum-ip-generic",
    "tx-checksum-ipv4",
    "tx-checksum-ipv6",
    "tx-generic-segmentation",
    "tx-ipxip4-segmentation",
    "tx-tcp-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-udp_tnl-segmentation",
];

/// XDP programs of a link: how each is attached, as ip-link(8) prints it, and its
/// number. A device can have one of each kind.
///
/// # Errors
/// When the payload of RTM_NEWLINK cannot be the kernel's.
pub fn xdp(payload: &[u8]) -> Result<Vec<(&'static str, u32)>, DecodeError> {
    let mut found = Vec::new();
    for attribute in NlasIterator::new(payload.get(IFINFO_BYTES..).unwrap_or_default()) {
        let attribute = attribute?;
        if attribute.kind() != XDP {
            continue;
        }
        let (mut attached, mut only) = (None, None);
        for part in NlasIterator::new(attribute.value()) {
            let part = part?;
            let id = word(part.value());
            let kind = match part.kind() {
                ATTACHED => {
                    attached = part.value().first().copied();
                    continue;
                }
                PROGRAM => {
                    only = id;
                    continue;
                }
                IN_DRIVER => "xdp",
                GENERIC => "xdpgeneric",
                IN_DEVICE => "xdpoffload",
                _ => continue,
            };
            found.extend(id.map(|id| (kind, id)));
        }
        // XDP_ATTACHED_DRV, _SKB and _HW, for kernels before 4.19.
        let kind = match attached {
            Some(1) => Some("xdp"),
            Some(2) => Some("xdpgeneric"),
            Some(3) => Some("xdpoffload"),
            _ => None,
        };
        if found.is_empty() {
            found.extend(kind.zip(only));
        }
    }
    // No kernel attaches more.
    found.truncate(3);
    Ok(found)
}

/// The number of a family of messages, of the control family's answer.
#[must_use]
pub fn family(payload: &[u8]) -> Option<u16> {
    let attributes = NlasIterator::new(payload.get(GENERIC_BYTES..)?);
    let id = attributes.flatten().find(|attribute| attribute.kind() == FAMILY_ID)?;
    id.value().first_chunk().copied().map(u16::from_ne_bytes)
}

/// The offloads of interest that are on, of ethtool's answer.
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn offloads(payload: &[u8]) -> Result<Vec<String>, DecodeError> {
    let mut on = Vec::new();
    for attribute in NlasIterator::new(payload.get(GENERIC_BYTES..).unwrap_or_default()) {
        let attribute = attribute?;
        if attribute.kind() != ACTIVE {
            continue;
        }
        let parts: Vec<_> = NlasIterator::new(attribute.value()).collect::<Result<_, _>>()?;
        // Without a mask only what is on is listed.
        let is_list = parts.iter().any(|part| part.kind() == NO_MASK);
        for bits in parts.iter().filter(|part| part.kind() == BITS) {
            for bit in NlasIterator::new(bits.value()) {
                let bit = bit?;
                if bit.kind() != BIT {
                    continue;
                }
                let (mut name, mut is_on) = (None, is_list);
                for part in NlasIterator::new(bit.value()) {
                    let part = part?;
                    match part.kind() {
                        BIT_NAME => name = known(part.value()),
                        BIT_VALUE => is_on = true,
                        _ => {}
                    }
                }
                on.extend(name.filter(|_| is_on && on.len() < OF_INTEREST.len()));
            }
        }
    }
    Ok(on.into_iter().map(str::to_owned).collect())
}

/// The offload of interest that has this name.
fn known(name: &[u8]) -> Option<&'static str> {
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    OF_INTEREST.into_iter().find(|known| known.as_bytes() == name)
}

/// What a driver says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Driver {
    /// Its name.
    pub name: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// The device's firmware.
    pub firmware: Option<String>,
}

/// `struct ethtool_drvinfo` (include/uapi/linux/ethtool.h).
#[must_use]
pub fn driver(answer: &[u8; DRIVER_BYTES]) -> Driver {
    let name = |position: usize| {
        let field = answer.get(4 + position * NAME_BYTES..)?.get(..NAME_BYTES)?;
        let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
        let text = String::from_utf8_lossy(field.get(..end)?);
        let clean: String = text.chars().filter(|c| !c.is_control()).collect();
        // Drivers without firmware say so in words.
        Some(clean).filter(|text| !text.is_empty() && text != "N/A")
    };
    Driver { name: name(0), version: name(1), firmware: name(2) }
}

fn word(value: &[u8]) -> Option<u32> {
    value.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        crate::source::ask::attribute(&mut bytes, kind, value);
        bytes
    }

    fn link(parts: &[(u16, &[u8])]) -> Vec<u8> {
        let parts: Vec<u8> =
            parts.iter().flat_map(|(kind, value)| attribute(*kind, value)).collect();
        [vec![0; IFINFO_BYTES], attribute(3, b"eth0\0"), attribute(XDP, &parts)].concat()
    }

    fn features(parts: &[Vec<u8>]) -> Vec<u8> {
        [vec![11, 1, 0, 0], attribute(ACTIVE, &parts.concat())].concat()
    }

    fn bit(name: &str, is_on: bool) -> Vec<u8> {
        let mut parts = attribute(BIT_NAME, &[name.as_bytes(), b"\0"].concat());
        if is_on {
            parts.extend(attribute(BIT_VALUE, &[]));
        }
        attribute(BIT, &parts)
    }

    #[test]
    fn programs_are_told_by_how_they_are_attached() {
        let id = 55_586_u32.to_ne_bytes();
        let generic = link(&[(ATTACHED, &[2]), (PROGRAM, &id), (GENERIC, &id)]);
        assert_eq!(xdp(&generic).unwrap(), [("xdpgeneric", 55_586)]);
        let other = 7_u32.to_ne_bytes();
        let both = link(&[(ATTACHED, &[4]), (IN_DRIVER, &id), (IN_DEVICE, &other)]);
        assert_eq!(xdp(&both).unwrap(), [("xdp", 55_586), ("xdpoffload", 7)]);
        let old = link(&[(ATTACHED, &[1]), (PROGRAM, &id)]);
        assert_eq!(xdp(&old).unwrap(), [("xdp", 55_586)]);
        assert_eq!(xdp(&link(&[(ATTACHED, &[0])])).unwrap(), []);
    }

    #[test]
    fn offloads_that_are_on_are_told_with_a_mask_and_without() {
        let listed = [bit("rx-checksum", false), bit("tx-nocache-copy", false)].concat();
        let list = features(&[attribute(NO_MASK, &[]), attribute(BITS, &listed)]);
        assert_eq!(offloads(&list).unwrap(), ["rx-checksum"]);
        let masked = [bit("rx-checksum", false), bit("tx-checksum-ipv4", true)].concat();
        let mask = features(&[attribute(BITS, &masked)]);
        assert_eq!(offloads(&mask).unwrap(), ["tx-checksum-ipv4"]);
    }

    #[test]
    fn a_driver_is_told_without_what_it_does_not_have() {
        let mut answer = [0; DRIVER_BYTES];
        answer[4..8].copy_from_slice(b"veth");
        answer[36..39].copy_from_slice(b"1.0");
        answer[68..71].copy_from_slice(b"N/A");
        let told = driver(&answer);
        assert_eq!(told.name.as_deref(), Some("veth"));
        assert_eq!(told.version.as_deref(), Some("1.0"));
        assert_eq!(told.firmware, None);
    }

    #[test]
    fn truncated_answers_never_panic() {
        let id = 9_u32.to_ne_bytes();
        let answers = [
            link(&[(ATTACHED, &[2]), (GENERIC, &id)]),
            features(&[attribute(BITS, &bit("rx-checksum", true))]),
            [vec![1, 2, 0, 0], attribute(FAMILY_ID, &21_u16.to_ne_bytes())].concat(),
        ];
        assert_eq!(family(&answers[2]), Some(21));
        for whole in answers {
            for length in 0..whole.len() {
                let _ =
                    (xdp(&whole[..length]), offloads(&whole[..length]), family(&whole[..length]));
            }
        }
    }
}
