//! Netlink attributes (`struct nlattr`, linux/netlink.h), whose numbers nftables
//! writes in network order.

use std::borrow::Cow;

use super::Malformed;

/// The type without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const KIND_MASK: u16 = 0x3fff;

/// The attributes in some bytes; nothing after an error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub(super) const fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.0);
        let [low, high, kind_low, kind_high, ..] = *bytes else {
            return Some(Err(Malformed("an attribute shorter than its header")));
        };
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let Some(value) = bytes.get(4..length) else {
            return Some(Err(Malformed("an attribute longer than its message")));
        };
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([kind_low, kind_high]) & KIND_MASK;
        Some(Ok((kind, value)))
    }
}

/// A number of 32 bits.
pub(super) fn be32(value: &[u8]) -> Result<u32, Malformed> {
    let bytes = value.first_chunk().ok_or(Malformed("a number of less than 32 bits"))?;
    Ok(u32::from_be_bytes(*bytes))
}

/// A number of 64 bits.
pub(super) fn be64(value: &[u8]) -> Result<u64, Malformed> {
    let bytes = value.first_chunk().ok_or(Malformed("a number of less than 64 bits"))?;
    Ok(u64::from_be_bytes(*bytes))
}

/// A name. The kernel takes any bytes as one: what is no UTF-8 in it reads as
/// U+FFFD, so that a stranger's odd table blinds nobody.
pub(super) fn text(value: &[u8]) -> Cow<'_, str> {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default())
}

/// A word that the kernel's own modules have made: the name of an expression.
pub(super) fn word(value: &[u8]) -> Result<&str, Malformed> {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    let bytes = value.get(..end).unwrap_or_default();
    std::str::from_utf8(bytes).map_err(|_| Malformed("an expression's name that is not UTF-8"))
}
