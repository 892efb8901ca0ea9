//! CTNETLINK's messages (linux/netfilter/nfnetlink_conntrack.h). Their numbers
//! are in network order.

use netlink_packet_core::{DecodeError, NLA_HEADER_SIZE, NlasIterator};
use overlaywatch_core::model::{ConntrackCounters, Encapsulation};

/// IPPROTO_UDP.
pub(super) const UDP: u8 = 17;
/// IPPROTO_IPIP.
pub(super) const IPIP: u8 = 4;
/// `IPS_SEEN_REPLY` (linux/netfilter/nf_conntrack_common.h).
const SEEN_REPLY: u32 = 1 << 1;
/// Bytes of `struct nfgenmsg`.
const HEADER_BYTES: usize = 4;

/// `enum ctattr_type` and below.
pub(super) mod attributes {
    /// `NLA_F_NESTED`: what is inside is attributes.
    pub(crate) const NESTED: u16 = 1 << 15;
    pub(crate) const TUPLE_ORIG: u16 = 1;
    pub(crate) const STATUS: u16 = 3;
    pub(crate) const FILTER: u16 = 25;
    /// `enum ctattr_tuple`.
    pub(crate) const TUPLE_PROTO: u16 = 2;
    /// `enum ctattr_l4proto`.
    pub(crate) const PROTO_NUM: u16 = 1;
    pub(crate) const PROTO_DST_PORT: u16 = 3;
}

/// `enum ctattr_filter`, and its flags (`CTA_FILTER_F_...`,
/// net/netfilter/nf_conntrack_netlink.c).
pub(super) mod filter {
    pub(crate) const ORIG_FLAGS: u16 = 1;
    pub(crate) const REPLY_FLAGS: u16 = 2;
    pub(crate) const PROTO_NUM: u32 = 1 << 3;
    pub(crate) const DST_PORT: u32 = 1 << 5;
}

/// A message that cannot be the kernel's.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// It ends too early.
    #[error("a message without a header")]
    Header,
    /// A file without the names of its columns.
    #[error("no column `drop`")]
    Names,
    /// A line of a file with fewer numbers than there are names.
    #[error("a line without a number for each name")]
    Number,
    /// An attribute has the wrong length.
    #[error("attribute {0} has {1} bytes")]
    Length(u16, usize),
    /// Its attributes make no sense.
    #[error(transparent)]
    Attributes(#[from] DecodeError),
}

/// A tracked connection, as far as it matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The IP protocol of its first packet.
    pub protocol: u8,
    /// The destination port of its first packet, where the protocol has ports.
    pub port: Option<u16>,
    /// Packets went both ways.
    pub replied: bool,
}

impl Entry {
    /// Whether it is a tunnel's.
    #[must_use]
    pub fn is_of(self, encapsulation: Encapsulation) -> bool {
        match encapsulation {
            Encapsulation::Ipip => self.protocol == IPIP,
            Encapsulation::Vxlan(port) => self.protocol == UDP && self.port == Some(port),
        }
    }
}

/// Each attribute's type and value.
fn each(bytes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), DecodeError>> {
    NlasIterator::new(bytes).map(|attribute| {
        let attribute = attribute?;
        let (kind, end) = (attribute.kind(), usize::from(attribute.length()));
        Ok((kind, attribute.into_inner().get(NLA_HEADER_SIZE..end).unwrap_or_default()))
    })
}

fn body(payload: &[u8]) -> Result<&[u8], Malformed> {
    payload.get(HEADER_BYTES..).ok_or(Malformed::Header)
}

fn number<const N: usize>(kind: u16, value: &[u8]) -> Result<[u8; N], Malformed> {
    value.try_into().map_err(|_| Malformed::Length(kind, value.len()))
}

/// Entries and limit, of an answer to `IPCTNL_MSG_CT_GET_STATS` (`enum ctattr_stats_global`).
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn size(payload: &[u8]) -> Result<(u32, u32), Malformed> {
    let (mut count, mut max) = (0, 0);
    for attribute in each(body(payload)?) {
        let (kind, value) = attribute?;
        match kind {
            1 => count = u32::from_be_bytes(number(kind, value)?),
            2 => max = u32::from_be_bytes(number(kind, value)?),
            _ => {}
        }
    }
    Ok((count, max))
}

/// Adds one CPU's counters, of an answer to `IPCTNL_MSG_CT_GET_STATS_CPU`
/// (`enum ctattr_stats_cpu`).
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn count(payload: &[u8], counters: &mut ConntrackCounters) -> Result<(), Malformed> {
    for attribute in each(body(payload)?) {
        let (kind, value) = attribute?;
        let counter = match kind {
            2 => &mut counters.found,
            4 => &mut counters.invalid,
            9 => &mut counters.insert_failed,
            10 => &mut counters.drop,
            11 => &mut counters.early_drop,
            12 => &mut counters.error,
            13 => &mut counters.search_restart,
            14 => &mut counters.clash_resolve,
            15 => &mut counters.chain_too_long,
            _ => continue,
        };
        *counter = counter.saturating_add(u32::from_be_bytes(number(kind, value)?).into());
    }
    Ok(())
}

/// The counters of /proc/net/stat/nf_conntrack: a line of names, and one of
/// hexadecimal numbers for each CPU (ct_cpu_seq_show,
/// net/netfilter/nf_conntrack_standalone.c).
///
/// # Errors
/// When the two do not fit, or no packet's loss is counted.
pub fn counters(text: &str) -> Result<ConntrackCounters, Malformed> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap_or_default().split_ascii_whitespace().collect();
    if !names.contains(&"drop") {
        return Err(Malformed::Names);
    }
    let mut counters = ConntrackCounters::default();
    for line in lines {
        let mut numbers = line.split_ascii_whitespace();
        for name in &names {
            let number = numbers.next().and_then(|number| u64::from_str_radix(number, 16).ok());
            let number = number.ok_or(Malformed::Number)?;
            let counter = match *name {
                "found" => &mut counters.found,
                "invalid" => &mut counters.invalid,
                "insert_failed" => &mut counters.insert_failed,
                "drop" => &mut counters.drop,
                "early_drop" => &mut counters.early_drop,
                "icmp_error" => &mut counters.error,
                "search_restart" => &mut counters.search_restart,
                "clashres" => &mut counters.clash_resolve,
                "chainlength" => &mut counters.chain_too_long,
                _ => continue,
            };
            *counter = counter.saturating_add(number);
        }
    }
    Ok(counters)
}

/// One entry of the table (`IPCTNL_MSG_CT_NEW`).
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn entry(payload: &[u8]) -> Result<Entry, Malformed> {
    let mut entry = Entry::default();
    for attribute in each(body(payload)?) {
        let (kind, value) = attribute?;
        match kind {
            attributes::TUPLE_ORIG => tuple(value, &mut entry)?,
            attributes::STATUS => {
                let status = u32::from_be_bytes(number(kind, value)?);
                entry.replied = status & SEEN_REPLY != 0;
            }
            _ => {}
        }
    }
    Ok(entry)
}

fn tuple(bytes: &[u8], entry: &mut Entry) -> Result<(), Malformed> {
    for attribute in each(bytes) {
        let (kind, value) = attribute?;
        if kind != attributes::TUPLE_PROTO {
            continue;
        }
        for attribute in each(value) {
            let (kind, value) = attribute?;
            match kind {
                attributes::PROTO_NUM => [entry.protocol] = number(kind, value)?,
                attributes::PROTO_DST_PORT => {
                    entry.port = Some(u16::from_be_bytes(number(kind, value)?));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An attribute as the kernel writes it.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        crate::source::ask::attribute(&mut bytes, kind, value);
        bytes
    }

    fn message(attributes: &[Vec<u8>]) -> Vec<u8> {
        [vec![0; HEADER_BYTES], attributes.concat()].concat()
    }

    #[test]
    fn an_entry_is_told_by_its_first_packet() {
        let protocol = |number: u8, port: u16| {
            let inside = [attribute(1, &[number]), attribute(3, &port.to_be_bytes())].concat();
            attribute(attributes::NESTED | 2, &inside)
        };
        let told = |status: u32| {
            let original = attribute(attributes::NESTED | 1, &protocol(UDP, 8472));
            // The reply's tuple, which must not be taken for it.
            let reply = attribute(attributes::NESTED | 2, &protocol(UDP, 5));
            entry(&message(&[original, reply, attribute(3, &status.to_be_bytes())])).unwrap()
        };
        assert_eq!(told(8), Entry { protocol: UDP, port: Some(8472), replied: false });
        assert!(told(8 | SEEN_REPLY).replied);
        assert!(told(8).is_of(Encapsulation::Vxlan(8472)));
        assert!(!told(8).is_of(Encapsulation::Vxlan(4789)));
        assert!(!told(8).is_of(Encapsulation::Ipip));
    }

    #[test]
    fn counters_are_summed_over_the_processors() {
        let cpu = message(&[attribute(10, &7_u32.to_be_bytes()), attribute(99, &[1])]);
        let mut counters = ConntrackCounters::default();
        count(&cpu, &mut counters).unwrap();
        count(&cpu, &mut counters).unwrap();
        assert_eq!(counters, ConntrackCounters { drop: 14, ..Default::default() });
    }

    #[test]
    fn the_files_columns_are_known_by_name() {
        // Linux 6.1, two processors; the columns of older kernels are others.
        let text = "entries  clashres found new invalid ignore delete chainlength insert \
                    insert_failed drop early_drop icmp_error  expect_new expect_create \
                    expect_delete search_restart\n\
                    00000a10  00000001 00000002 0 00000003 0 0 00000004 0 00000005 000000ff \
                    00000007 00000008  0 0 0 00000009\n\
                    00000a10  00000001 00000002 0 00000003 0 0 00000004 0 00000005 00000001 \
                    00000007 00000008  0 0 0 00000009\n";
        let told = counters(text).unwrap();
        assert_eq!((told.drop, told.early_drop, told.insert_failed), (256, 14, 10));
        assert_eq!((told.found, told.invalid, told.error), (4, 6, 16));
        assert_eq!((told.search_restart, told.clash_resolve, told.chain_too_long), (18, 2, 8));
        assert!(counters("").is_err() && counters("found\n0\n").is_err());
        assert!(counters("entries drop\n1\n").is_err() && counters("drop\nx\n").is_err());
    }

    #[test]
    fn a_number_of_the_wrong_length_is_refused() {
        assert!(size(&message(&[attribute(1, &[0; 3])])).is_err());
        assert!(size(&[0; 2]).is_err());
        let whole = message(&[attribute(1, &5_u32.to_be_bytes()), attribute(2, &[0, 0, 1, 0])]);
        assert_eq!(size(&whole).unwrap(), (5, 256));
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = entry(&bytes);
            let _ = size(&bytes);
            let _ = counters(&String::from_utf8_lossy(&bytes));
            let _ = count(&bytes, &mut ConntrackCounters::default());
        }
    }
}
