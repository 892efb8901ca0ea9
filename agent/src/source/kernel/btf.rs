//! Reads the kernel's own type information (Documentation/bpf/btf.rst): where
//! members of structures are, and what the numbers of an enumeration mean.

use std::collections::BTreeMap;

/// `BTF_MAGIC`, little-endian as on every machine this runs on.
const MAGIC: [u8; 2] = [0x9f, 0xeb];
/// The header, bytes.
const HEADER_BYTES: usize = 24;
/// A type's fixed part, bytes.
const TYPE_BYTES: usize = 12;
/// The highest type number that is believed: some four times what kernels have.
const MOST_TYPES: usize = 1 << 20;
/// How deep anonymous members and typedefs are followed.
const DEEPEST: u32 = 8;

/// Kinds of types (include/uapi/linux/btf.h).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Why type information cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's type information is malformed: {0}")]
pub struct Malformed(&'static str);

/// Type information, with the place of each type.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins; number 0 is `void` and has no place.
    places: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    kind: u32,
    /// Bit offsets of members carry the width of bit fields.
    has_bit_fields: bool,
    /// Number of the type that it refers to.
    refers: u32,
    /// What follows the fixed part.
    entries: &'a [u8],
    count: usize,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let (word, _) = bytes.get(at..)?.split_first_chunk::<4>()?;
    Some(u32::from_le_bytes(*word))
}

fn place(bytes: &[u8], at: usize) -> Option<usize> {
    word(bytes, at).and_then(|word| usize::try_from(word).ok())
}

impl<'a> Btf<'a> {
    /// Takes in what /sys/kernel/btf/vmlinux holds.
    ///
    /// # Errors
    /// When it is cut short, or of another format.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if !bytes.starts_with(&MAGIC) {
            return Err(Malformed("no magic"));
        }
        let header = place(bytes, 4).filter(|&length| length >= HEADER_BYTES);
        let header = header.ok_or(Malformed("no header"))?;
        let section = |at: usize| {
            let (from, length) = (place(bytes, at)?, place(bytes, at + 4)?);
            let from = header.checked_add(from)?;
            bytes.get(from..from.checked_add(length)?)
        };
        let types = section(8).ok_or(Malformed("types outside of the file"))?;
        let strings = section(16).ok_or(Malformed("strings outside of the file"))?;
        let mut places = vec![0];
        let mut at = 0;
        while at < types.len() {
            if places.len() >= MOST_TYPES {
                return Err(Malformed("too many types"));
            }
            let length = length_at(types, at).ok_or(Malformed("a type is cut short"))?;
            places.push(u32::try_from(at).map_err(|_| Malformed("too long"))?);
            at += length;
        }
        Ok(Self { types, strings, places })
    }

    /// Offset of a member, bytes: the first name is a structure's, each further
    /// one a member of what the one before it is.
    #[must_use]
    pub fn offset(&self, structure: &str, path: &[&str]) -> Option<u16> {
        let mut of = self.find(structure, |kind| kind == kind::STRUCT)?;
        let mut bits = 0_u32;
        for member in path {
            let (at, number) = self.member(of, member, 0)?;
            bits = bits.checked_add(at)?;
            of = self.plain(number).unwrap_or(of);
        }
        u16::try_from(bits / 8).ok()
    }

    /// The enumerators of an enumeration by value.
    #[must_use]
    pub fn enumerators(&self, name: &str) -> BTreeMap<u32, String> {
        let Some(found) = self.find(name, |kind| kind == kind::ENUM) else {
            return BTreeMap::new();
        };
        found
            .entries
            .chunks_exact(8)
            .filter_map(|entry| Some((word(entry, 4)?, self.text(word(entry, 0)?)?.to_owned())))
            .collect()
    }

    /// How many arguments a tracepoint hands to its probes: the first of the
    /// function behind `btf_trace_NAME` is the probe's own data.
    #[must_use]
    pub fn tracepoint_arguments(&self, tracepoint: &str) -> Option<usize> {
        let name = format!("btf_trace_{tracepoint}");
        let found = self.find(&name, |kind| kind == kind::TYPEDEF)?;
        let function = self.plain(self.plain(found.refers)?.refers)?;
        (function.kind == kind::FUNC_PROTO).then(|| function.count.saturating_sub(1))
    }

    fn find(&self, name: &str, is_kind: impl Fn(u32) -> bool) -> Option<Type<'a>> {
        (1..self.places.len()).find_map(|number| {
            let found = self.number(u32::try_from(number).ok()?)?;
            (is_kind(found.kind) && self.text(found.name) == Some(name)).then_some(found)
        })
    }

    fn number(&self, number: u32) -> Option<Type<'a>> {
        let at = *self.places.get(usize::try_from(number).ok().filter(|&n| n > 0)?)?;
        let at = usize::try_from(at).ok()?;
        let info = word(self.types, at + 4)?;
        let length = length_at(self.types, at)?;
        Some(Type {
            name: word(self.types, at)?,
            kind: kind_of(info),
            has_bit_fields: info >> 31 == 1,
            refers: word(self.types, at + 8)?,
            entries: self.types.get(at + TYPE_BYTES..at + length)?,
            count: usize::try_from(info & 0xffff).ok()?,
        })
    }

    /// The type behind typedefs and qualifiers.
    fn plain(&self, number: u32) -> Option<Type<'a>> {
        let mut found = self.number(number)?;
        for _ in 0..DEEPEST {
            let is_wrapper = matches!(
                found.kind,
                kind::TYPEDEF | kind::CONST | kind::VOLATILE | kind::RESTRICT | kind::TYPE_TAG
            );
            if !is_wrapper {
                break;
            }
            found = self.number(found.refers)?;
        }
        Some(found)
    }

    /// Bit offset and type of a member, also of one in an anonymous structure
    /// or union.
    fn member(&self, of: Type<'a>, name: &str, depth: u32) -> Option<(u32, u32)> {
        if depth > DEEPEST || !matches!(of.kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        of.entries.chunks_exact(12).find_map(|entry| {
            let number = word(entry, 4)?;
            let bits = word(entry, 8)?;
            let bits = if of.has_bit_fields { bits & 0x00ff_ffff } else { bits };
            match self.text(word(entry, 0)?)? {
                "" => {
                    let (inner, number) = self.member(self.plain(number)?, name, depth + 1)?;
                    Some((bits.checked_add(inner)?, number))
                }
                found => (found == name).then_some((bits, number)),
            }
        })
    }

    fn text(&self, at: u32) -> Option<&'a str> {
        let rest = self.strings.get(usize::try_from(at).ok()?..)?;
        let end = rest.iter().position(|&byte| byte == 0)?;
        std::str::from_utf8(rest.get(..end)?).ok()
    }
}

const fn kind_of(info: u32) -> u32 {
    info >> 24 & 0x1f
}

/// Length of the type at a place, bytes.
fn length_at(types: &[u8], at: usize) -> Option<usize> {
    let info = word(types, at.checked_add(4)?)?;
    let count = usize::try_from(info & 0xffff).ok()?;
    let entries = match kind_of(info) {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * count,
        kind::ENUM | kind::FUNC_PROTO => 8 * count,
        0 | 20.. => return None,
        _ => 0,
    };
    let length = TYPE_BYTES + entries;
    (at.checked_add(length)? <= types.len()).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_running_kernel() {
        let bytes = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        let btf = Btf::parse(&bytes).unwrap();
        assert!(btf.offset("sk_buff", &["dev"]).is_some());
        assert!(btf.offset("sk_buff", &["network_header"]).is_some());
        assert!(btf.offset("net_device", &["nd_net", "net"]).is_some());
        assert!(btf.offset("net", &["ns", "inum"]).is_some());
        assert_eq!(btf.offset("sk_buff", &["no_such_member"]), None);
        assert_eq!(btf.offset("no_such_structure", &["dev"]), None);
        let reasons = btf.enumerators("skb_drop_reason");
        assert!(reasons.values().any(|name| name == "SKB_DROP_REASON_NETFILTER_DROP"));
        assert!(btf.tracepoint_arguments("kfree_skb").unwrap() >= 2);
    }

    #[test]
    fn refuses_what_is_cut_short() {
        let bytes = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        for length in [0, 1, 10, HEADER_BYTES, 1_000, bytes.len() / 2, bytes.len() - 1] {
            assert!(Btf::parse(&bytes[..length]).is_err(), "{length}");
        }
        assert_eq!(Btf::parse(b"not BTF").unwrap_err(), Malformed("no magic"));
    }
}
