//! A message of the ipset subsystem to a set or to a type's revisions
//! (linux/netfilter/ipset/ip_set.h).

use netlink_packet_core::{DecodeError, NlasIterator, parse_string};
use overlaywatch_core::model::{IpSet, Revisions};

/// Bytes of `struct nfgenmsg`.
const HEADER_BYTES: usize = 4;
/// The longest name of a set or type with its terminating zero (`IPSET_MAXNAMELEN`).
const NAME_BYTES: usize = 32;
/// `IPSET_FLAG_WITH_FORCEADD`.
const FORCEADD: u32 = 1 << 5;

/// Attributes of a message.
pub(super) mod command {
    pub(in super::super) const PROTOCOL: u16 = 1;
    pub(in super::super) const TYPENAME: u16 = 3;
    pub(in super::super) const FAMILY: u16 = 5;
    pub(in super::super) const FLAGS: u16 = 6;
    pub(super) const SETNAME: u16 = 2;
    pub(super) const REVISION: u16 = 4;
    pub(super) const DATA: u16 = 7;
    pub(super) const REVISION_MIN: u16 = 10;
}

/// Attributes inside of `command::DATA`.
mod data {
    pub(super) const CADT_FLAGS: u16 = 8;
    pub(super) const MAXELEM: u16 = 19;
    pub(super) const ELEMENTS: u16 = 24;
    pub(super) const REFERENCES: u16 = 25;
    pub(super) const MEMSIZE: u16 = 26;
}

/// A message that the kernel would not write like this.
#[derive(Debug, thiserror::Error)]
#[error("a message that makes no sense: {0}")]
pub struct Malformed(String);

impl From<DecodeError> for Malformed {
    fn from(error: DecodeError) -> Self {
        Self(error.to_string())
    }
}

/// The set that a part of an answer to `IPSET_CMD_LIST` tells of, by its header
/// (ip_set_dump_do, net/netfilter/ipset/ip_set_core.c). None where a set's
/// members go on that were begun in the message before, which has the header.
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn set(payload: &[u8]) -> Result<Option<IpSet>, Malformed> {
    let mut set = IpSet::default();
    let mut revision = None;
    for attribute in NlasIterator::new(attributes(payload)?) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            command::SETNAME => set.name = name(value)?,
            command::TYPENAME => set.kind = name(value)?,
            command::REVISION => revision = Some(byte(value)?),
            command::FAMILY => set.family = family(byte(value)?),
            command::DATA => header(value, &mut set)?,
            _ => {}
        }
    }
    let Some(revision) = revision else { return Ok(None) };
    if set.name.is_empty() || set.kind.is_empty() {
        return Err(Malformed("a set without a name or a type".to_owned()));
    }
    Ok(Some(IpSet { revision, ..set }))
}

/// What the kernel offers of a type, by its answer to `IPSET_CMD_TYPE`
/// (ip_set_type).
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn revisions(payload: &[u8]) -> Result<Revisions, Malformed> {
    let (mut min, mut max) = (None, None);
    for attribute in NlasIterator::new(attributes(payload)?) {
        let attribute = attribute?;
        match attribute.kind() {
            command::REVISION => max = Some(byte(attribute.value())?),
            command::REVISION_MIN => min = Some(byte(attribute.value())?),
            _ => {}
        }
    }
    match (min, max) {
        (Some(min), Some(max)) if min <= max => Ok(Revisions { min, max }),
        _ => Err(Malformed("a type without a range of revisions".to_owned())),
    }
}

fn attributes(payload: &[u8]) -> Result<&[u8], Malformed> {
    payload.get(HEADER_BYTES..).ok_or_else(|| Malformed("without a whole header".to_owned()))
}

/// A set's header (mtype_head, net/netfilter/ipset/ip_set_hash_gen.h; the other
/// types have one of the same attributes).
fn header(value: &[u8], set: &mut IpSet) -> Result<(), Malformed> {
    for attribute in NlasIterator::new(value) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            data::CADT_FLAGS => set.evicts = word(value)? & FORCEADD != 0,
            data::MAXELEM => set.capacity = Some(word(value)?),
            data::ELEMENTS => set.elements = word(value)?,
            data::REFERENCES => set.references = word(value)?,
            data::MEMSIZE => set.bytes = word(value)?,
            _ => {}
        }
    }
    Ok(())
}

/// A name; the kernel takes any bytes but zero.
fn name(value: &[u8]) -> Result<String, Malformed> {
    if value.len() > NAME_BYTES {
        return Err(Malformed(format!("a name of {} bytes", value.len())));
    }
    parse_string(value).map(|name| name.escape_debug().to_string()).map_err(Malformed::from)
}

fn byte(value: &[u8]) -> Result<u8, Malformed> {
    match value {
        [byte] => Ok(*byte),
        _ => Err(Malformed(format!("{} bytes where one is expected", value.len()))),
    }
}

/// A 32-bit number in network byte order (`NLA_F_NET_BYTEORDER`).
fn word(value: &[u8]) -> Result<u32, Malformed> {
    let bytes = <[u8; 4]>::try_from(value);
    bytes
        .map(u32::from_be_bytes)
        .map_err(|_| Malformed(format!("{} bytes where four are expected", value.len())))
}

const fn family(number: u8) -> Option<u8> {
    match number as i32 {
        libc::AF_INET => Some(4),
        libc::AF_INET6 => Some(6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::ask::attribute;
    use super::*;

    fn message(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0];
        for (kind, value) in attributes {
            attribute(&mut bytes, *kind, value);
        }
        bytes
    }

    #[test]
    fn a_set_is_read_by_its_header() {
        let mut inside = Vec::new();
        for (kind, number) in [(19, 65_536_u32), (24, 7), (25, 2), (26, 4096), (8, 1 << 5)] {
            attribute(&mut inside, kind | 0x4000, &number.to_be_bytes());
        }
        let bytes = message(&[
            (1, &[7]),
            (2, b"cali40this-host\0"),
            (3, b"hash:ip\0"),
            (5, &[2]),
            (4, &[6]),
            (7 | 0x8000, &inside),
        ]);
        let expected = IpSet {
            name: "cali40this-host".to_owned(),
            kind: "hash:ip".to_owned(),
            family: Some(4),
            revision: 6,
            elements: 7,
            capacity: Some(65_536),
            references: 2,
            bytes: 4096,
            evicts: true,
        };
        assert_eq!(set(&bytes).unwrap(), Some(expected));
        for cut in 1..bytes.len() {
            // No part of a message is taken for another whole one.
            assert_ne!(set(&bytes[..cut]).ok().flatten().map(|set| set.elements), Some(7));
        }
    }

    #[test]
    fn members_that_go_on_are_no_set_of_their_own() {
        assert_eq!(set(&message(&[(1, &[7]), (2, b"big\0")])).unwrap(), None);
    }

    #[test]
    fn names_that_no_kernel_gives_are_refused() {
        let long = [b'a'; 40];
        assert!(set(&message(&[(2, &long), (3, b"hash:ip\0"), (4, &[1])])).is_err());
        assert!(set(&message(&[(2, b"a\0"), (4, &[1])])).is_err());
        // What would draw on a terminal is written out.
        let set = set(&message(&[(2, b"\x1b[2J\0"), (3, b"hash:ip\0"), (4, &[1])]));
        assert_eq!(set.unwrap().unwrap().name, "\\u{1b}[2J");
    }

    #[test]
    fn a_types_range_is_read() {
        let both = message(&[(1, &[7]), (3, b"hash:ip\0"), (4, &[6]), (10, &[0])]);
        assert_eq!(revisions(&both).unwrap(), Revisions { min: 0, max: 6 });
        assert!(revisions(&message(&[(4, &[6])])).is_err());
        assert!(revisions(&message(&[(4, &[3]), (10, &[4])])).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = set(&bytes);
            let _ = revisions(&bytes);
        }
    }
}
