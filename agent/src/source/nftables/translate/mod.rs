//! Bytes in, model out: nftables messages (linux/netfilter/nf_tables.h) to what
//! a ruleset's summary is made of.
//!
//! Attributes nobody here asks for are skipped unread, so that a newer kernel's
//! additions blind nobody.

mod attribute;
mod expression;
mod summary;

use std::borrow::Cow;

use overlaywatch_core::model::{ChainHook, Committer, Family};

use attribute::{Attributes, be32, be64, text, word};

pub use expression::{Rule, Verdict};
pub use summary::Summary;

/// `NFNL_SUBSYS_NFTABLES`, in the upper byte of each message's type
/// (linux/netfilter/nfnetlink.h).
pub const SUBSYSTEM: u16 = 10 << 8;
/// Bytes of `struct nfgenmsg`, which every message begins with.
const FAMILY_HEADER_BYTES: usize = 4;
/// `NFT_TABLE_F_OWNER`.
const HAS_OWNER: u32 = 2;

/// A message that the kernel would not write like this.
#[derive(Debug, thiserror::Error)]
#[error("a message that makes no sense: {0}")]
pub struct Malformed(&'static str);

/// A ruleset's generation, and who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Counts transactions.
    pub id: u32,
    /// Who committed the latest: told in notifications only.
    pub by: Option<Committer>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table<'a> {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: Cow<'a, str>,
    /// Its handle.
    pub handle: u64,
    /// The netlink port of the program that alone may change it.
    pub owner: Option<u32>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain<'a> {
    /// Its table's family.
    pub family: Family,
    /// Its table.
    pub table: Cow<'a, str>,
    /// Its name.
    pub name: Cow<'a, str>,
    /// Its handle.
    pub handle: u64,
    /// Its rules, and the jumps to it.
    pub uses: u32,
    /// What makes it a base chain; none where packets come to it by jumps only.
    pub base: Option<Base<'a>>,
}

/// What makes a chain a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base<'a> {
    /// "filter", "nat" or "route".
    pub kind: &'a str,
    /// Its hook; none for one that is not known here.
    pub hook: Option<ChainHook>,
    /// Its priority.
    pub priority: i32,
    /// Its policy is to drop.
    pub drops: bool,
}

/// Whether a name was read as it is, so that the kernel can be asked by it.
pub(super) fn is_exact(name: &str) -> bool {
    !name.contains(char::REPLACEMENT_CHARACTER)
}

/// The family of a message, and its attributes; none for a family that
/// nftables has no tables of.
fn open(payload: &[u8]) -> Result<Option<(Family, Attributes<'_>)>, Malformed> {
    let (header, attributes) = payload
        .split_at_checked(FAMILY_HEADER_BYTES)
        .ok_or(Malformed("shorter than its header"))?;
    let family = header.first().copied().and_then(Family::of_number);
    Ok(family.map(|family| (family, Attributes::of(attributes))))
}

/// `NFT_MSG_NEWGEN`.
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn generation(payload: &[u8]) -> Result<Generation, Malformed> {
    let attributes =
        payload.get(FAMILY_HEADER_BYTES..).ok_or(Malformed("shorter than its header"))?;
    let (mut id, mut pid, mut name) = (None, None, None);
    for attribute in Attributes::of(attributes) {
        let (kind, value) = attribute?;
        match kind {
            1 => id = Some(be32(value)?),
            2 => pid = Some(be32(value)?),
            3 => name = Some(text(value)),
            _ => {}
        }
    }
    let id = id.ok_or(Malformed("a generation without a number"))?;
    let by = pid.zip(name).map(|(pid, name)| Committer { pid, name: name.into_owned() });
    Ok(Generation { id, by })
}

/// The table that a message about a table, a chain or a rule is of: they all
/// name it first.
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn table_of(payload: &[u8]) -> Result<Option<(Family, Cow<'_, str>)>, Malformed> {
    let Some((family, attributes)) = open(payload)? else { return Ok(None) };
    for attribute in attributes {
        let (kind, value) = attribute?;
        if kind == 1 {
            return Ok(Some((family, text(value))));
        }
    }
    Ok(None)
}

/// `NFT_MSG_NEWTABLE`.
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn table(payload: &[u8]) -> Result<Option<Table<'_>>, Malformed> {
    let Some((family, attributes)) = open(payload)? else { return Ok(None) };
    let (mut name, mut flags, mut handle, mut owner) = (None, 0, 0, None);
    for attribute in attributes {
        let (kind, value) = attribute?;
        match kind {
            1 => name = Some(text(value)),
            2 => flags = be32(value)?,
            4 => handle = be64(value)?,
            7 => owner = Some(be32(value)?),
            _ => {}
        }
    }
    let name = name.ok_or(Malformed("a table without a name"))?;
    let owner = owner.filter(|_| flags & HAS_OWNER != 0);
    Ok(Some(Table { family, name, handle, owner }))
}

/// `NFT_MSG_NEWCHAIN`.
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn chain(payload: &[u8]) -> Result<Option<Chain<'_>>, Malformed> {
    let Some((family, attributes)) = open(payload)? else { return Ok(None) };
    let (mut table, mut name, mut handle, mut uses) = (None, None, 0, 0);
    let (mut hooked, mut drops, mut kind_of) = (None, false, "filter");
    for attribute in attributes {
        let (kind, value) = attribute?;
        match kind {
            1 => table = Some(text(value)),
            2 => handle = be64(value)?,
            3 => name = Some(text(value)),
            4 => hooked = Some(hook(value)?),
            // NF_DROP is 0, NF_ACCEPT 1.
            5 => drops = be32(value)? == 0,
            6 => uses = be32(value)?,
            7 => kind_of = word(value)?,
            _ => {}
        }
    }
    let base = hooked.map(|(number, priority)| Base {
        kind: kind_of,
        hook: ChainHook::of_number(family, number),
        priority,
        drops,
    });
    let table = table.ok_or(Malformed("a chain without a table"))?;
    let name = name.ok_or(Malformed("a chain without a name"))?;
    Ok(Some(Chain { family, table, name, handle, uses, base }))
}

/// Hook number and priority (`NFTA_HOOK_...`).
fn hook(value: &[u8]) -> Result<(u32, i32), Malformed> {
    let (mut number, mut priority) = (0, 0);
    for attribute in Attributes::of(value) {
        let (kind, value) = attribute?;
        match kind {
            1 => number = be32(value)?,
            2 => priority = be32(value)?.cast_signed(),
            _ => {}
        }
    }
    Ok((number, priority))
}

/// `NFT_MSG_NEWRULE`.
///
/// # Errors
/// When the payload cannot be the kernel's.
pub fn rule(payload: &[u8]) -> Result<Option<Rule<'_>>, Malformed> {
    let Some((family, attributes)) = open(payload)? else { return Ok(None) };
    let (mut table, mut chain, mut handle) = (None, None, 0);
    let (mut expressions, mut comment) = (&[][..], &[][..]);
    for attribute in attributes {
        let (kind, value) = attribute?;
        match kind {
            1 => table = Some(text(value)),
            2 => chain = Some(text(value)),
            3 => handle = be64(value)?,
            4 => expressions = value,
            // NFTA_RULE_USERDATA: the kernel keeps it for whoever made the rule.
            7 => comment = value,
            _ => {}
        }
    }
    let table = table.ok_or(Malformed("a rule without a table"))?;
    let chain = chain.ok_or(Malformed("a rule without a chain"))?;
    let mut rule = expression::read(family, table, chain, handle, expressions)?;
    rule.tell_apart(comment);
    Ok(Some(rule))
}

#[cfg(test)]
mod tests;
