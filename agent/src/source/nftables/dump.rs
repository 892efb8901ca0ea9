//! What the kernel is asked of nftables, and in which portions.

use std::collections::BTreeMap;

use netlink_sys::protocols::NETLINK_NETFILTER;
use overlaywatch_core::model::{Family, NftTable, RuleAt};

use super::translate::{self, SUBSYSTEM, Summary};
use crate::source::SourceError;
use crate::source::ask::{Line, Question, attribute};

/// Message types (enum nf_tables_msg_types).
const GET_TABLE: u16 = SUBSYSTEM | 1;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
pub(super) const NEW_GENERATION: u16 = SUBSYSTEM | 15;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
/// `NFPROTO_UNSPEC`: tables of all families.
const ANY_FAMILY: u8 = 0;
/// More rules than these are read chain by chain. The kernel finds the place in a
/// dump where it stopped by counting from its beginning, for each 32 KiB anew, so
/// what a whole table takes grows with the square of its rules.
const MOST_AT_ONCE: u64 = 10_000;

/// Tables by family and name.
pub(super) type Tables = BTreeMap<(Family, String), NftTable>;

/// The number of the ruleset's latest transaction.
pub(super) fn generation(line: &mut Line) -> Result<u32, SourceError> {
    let mut id = None;
    // Two short messages, the answer and the acknowledgement.
    let mut buffer = [0; 512];
    let question = Question {
        what: "asking nftables for its generation",
        protocol: NETLINK_NETFILTER,
        kind: GET_GENERATION,
        is_dump: false,
        body: &header(ANY_FAMILY),
    };
    line.ask(question, &mut buffer, |message| {
        if message.kind == NEW_GENERATION {
            id = Some(translate::generation(message.payload)?.id);
        }
        Ok::<_, translate::Malformed>(())
    })?;
    id.ok_or_else(|| SourceError::Malformed {
        what: question.what.to_owned(),
        reason: "an answer without a generation".to_owned(),
    })
}

/// What the counter of one rule says; none where it has none.
pub(super) fn packets(
    line: &mut Line,
    family: Family,
    table: &str,
    at: &RuleAt,
    buffer: &mut [u8],
) -> Result<Option<u64>, SourceError> {
    let mut body = named(family, &[table, &at.chain]);
    // NFTA_RULE_HANDLE.
    attribute(&mut body, 3, &at.handle.to_be_bytes());
    let question = Question {
        what: "asking nftables for a rule's counter",
        protocol: NETLINK_NETFILTER,
        kind: GET_RULE,
        is_dump: false,
        body: &body,
    };
    let mut packets = None;
    line.ask(question, buffer, |message| {
        if message.kind == NEW_RULE
            && let Some(rule) = translate::rule(message.payload)?
        {
            packets = rule.packets;
        }
        Ok::<_, translate::Malformed>(())
    })?;
    Ok(packets)
}

/// `struct nfgenmsg`: family, version, resource.
const fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// A question about rules of a table, or of one of its chains.
fn named(family: Family, names: &[&str]) -> Vec<u8> {
    let mut body = header(family.number()).to_vec();
    // NFTA_RULE_TABLE and NFTA_RULE_CHAIN, 1 and 2: the kernel then looks at
    // no other (nf_tables_dump_rules, net/netfilter/nf_tables_api.c).
    for (kind, name) in (1..).zip(names) {
        attribute(&mut body, kind, &[name.as_bytes(), b"\0"].concat());
    }
    body
}

/// Sums up one table or all; whether nothing changed meanwhile.
pub(super) fn dump(
    line: &mut Line,
    only: Option<(Family, &str)>,
    buffer: &mut [u8],
) -> Result<(Tables, bool), SourceError> {
    let is_asked = |family: Family, table: &str| only.is_none_or(|only| only == (family, table));
    let plain = header(only.map_or(ANY_FAMILY, |(family, _)| family.number()));
    let mut summary = Summary::default();
    let question = |what, kind| Question {
        what,
        protocol: NETLINK_NETFILTER,
        kind,
        is_dump: true,
        body: &plain,
    };
    let tables = question("dumping nftables' tables", GET_TABLE);
    let mut whole = line.ask(tables, buffer, |message| {
        if let Some(table) = translate::table(message.payload)?
            && is_asked(table.family, &table.name)
        {
            summary.table(&table);
        }
        Ok::<_, translate::Malformed>(())
    })?;
    let mut uses = 0_u64;
    let mut is_askable = true;
    let mut chains = Vec::new();
    let of_chains = question("dumping nftables' chains", GET_CHAIN);
    whole &= line.ask(of_chains, buffer, |message| {
        if let Some(chain) = translate::chain(message.payload)?
            && is_asked(chain.family, &chain.table)
        {
            summary.chain(&chain);
            uses = uses.saturating_add(chain.uses.into());
            if chain.uses > 0 {
                is_askable &= translate::is_exact(&chain.table) && translate::is_exact(&chain.name);
                chains.push((chain.family, chain.table.into_owned(), chain.name.into_owned()));
            }
        }
        Ok::<_, translate::Malformed>(())
    })?;
    let mut rules = |body: &[u8]| -> Result<bool, SourceError> {
        let rules = Question { body, ..question("dumping nftables' rules", GET_RULE) };
        line.ask(rules, buffer, |message| {
            if let Some(rule) = translate::rule(message.payload)?
                && is_asked(rule.family, &rule.table)
            {
                summary.rule(rule);
            }
            Ok::<_, translate::Malformed>(())
        })
    };
    if uses > MOST_AT_ONCE && is_askable {
        for (family, table, chain) in &chains {
            whole &= rules(&named(*family, &[table, chain]))?;
        }
    } else {
        let of_one = only.map(|(family, table)| named(family, &[table]));
        whole &= rules(of_one.as_deref().unwrap_or(&plain))?;
    }
    let tables = summary.finish().into_iter();
    Ok((tables.map(|table| ((table.family, table.name.clone()), table)).collect(), whole))
}
