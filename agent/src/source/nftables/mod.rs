//! Netfilter: the nftables ruleset, followed by its generation, and which tables
//! of the older xtables are there.
//!
//! Each tick asks for the generation, which costs a microsecond. Only when it
//! changed are tables dumped again, and of these only the ones that the
//! notifications of the change named.

mod follow;
mod legacy;
pub mod translate;

use std::collections::BTreeMap;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use overlaywatch_core::assembly::{SourceId, Update};
use overlaywatch_core::model::{Committer, Family, LegacyTable, Netfilter, NftTable};
use tokio::sync::mpsc::Sender;

use super::ask::{Question, ask, attribute};
use super::meter::{Closed, Run, disabled, metered, pause};
use super::{Options, SourceError, wire};
use crate::clock;
use follow::{Follower, Touched};
use translate::{SUBSYSTEM, Summary};

/// Message types (enum nf_tables_msg_types).
const GET_TABLE: u16 = SUBSYSTEM | 1;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;
const NEW_GENERATION: u16 = SUBSYSTEM | 15;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
/// `NFPROTO_UNSPEC`: tables of all families.
const ANY_FAMILY: u8 = 0;
/// Dumps in a row that a change may spoil before there is a pause.
const ATTEMPTS: u32 = 3;
/// The longest pause while a controller commits without pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// A dump may take this share of a core, one in 25, where one follows the other:
/// with tens of thousands of rules each takes a tenth of a second, and kube-proxy
/// commits every second where pods come and go.
const SHARE: u32 = 25;
/// xtables tell of no change: they are looked at every so many ticks.
const LEGACY_EVERY: u32 = 10;
/// More changed tables than this are read by one dump of all.
const MOST_SINGLE_DUMPS: usize = 4;

/// More rules than these are read chain by chain. The kernel finds the place in a
/// dump where it stopped by counting from its beginning, for each 32 KiB anew, so
/// what a whole table takes grows with the square of its rules.
const MOST_AT_ONCE: u64 = 10_000;

/// Follows the ruleset until nobody listens any more.
///
/// # Errors
/// [`Closed`] when the receiving end is gone; if disabled it returns at once.
pub fn run(options: &Options, updates: &Sender<Update>) -> Result<(), Closed> {
    if !options.enabled.contains(&SourceId::Nftables) {
        return disabled(updates, SourceId::Nftables);
    }
    let mut reader = Reader::default();
    let mut wait = options.poll;
    loop {
        let run = match reader.has_changed() {
            Ok(false) => None,
            Ok(true) => {
                let read = || Ok(Update::Netfilter(Box::new(reader.read()?)));
                Some(metered(updates, SourceId::Nftables, read)?)
            }
            Err(error) => Some(metered(updates, SourceId::Nftables, || Err(error))?),
        };
        wait = rest(run, wait, options.poll);
        pause(wait, updates)?;
    }
}

/// How long to rest after a run, if there was one, and after this rest before it.
/// A change after a quiet time is read at once, however large the ruleset.
fn rest(run: Option<Run>, before: Duration, poll: Duration) -> Duration {
    let Some(run) = run else { return poll };
    let fair = Duration::from_nanos(run.cpu_ns).saturating_mul(SHARE);
    let longer = if run.succeeded { fair } else { fair.max(before.saturating_mul(2)) };
    longer.clamp(poll, LONGEST_PAUSE.max(poll))
}

/// Reads the ruleset; what did not change it remembers.
#[derive(Debug, Default)]
pub struct Reader {
    follower: Option<Follower>,
    /// What changed since the last good dump.
    touched: Touched,
    tables: BTreeMap<(Family, String), NftTable>,
    /// None while they are hidden.
    legacy: Option<Vec<LegacyTable>>,
    legacy_age: u32,
    /// The generation up to which everything is known.
    generation: u32,
    /// A generation that no notification told of yet.
    untold: Option<u32>,
    /// What was told last.
    told: Option<Netfilter>,
    /// It is no longer relied on, since the kernel refused to tell more.
    is_stale: bool,
}

impl Reader {
    /// Whether [`Reader::read`] would find something new.
    ///
    /// # Errors
    /// When the kernel does not tell: CAP_NET_ADMIN is missing, or nftables.
    pub fn has_changed(&mut self) -> Result<bool, SourceError> {
        let outcome = self.look();
        self.is_stale |= outcome.is_err();
        outcome
    }

    fn look(&mut self) -> Result<bool, SourceError> {
        match &mut self.follower {
            Some(follower) => follower.drain(&mut self.touched)?,
            // Followed before it is read: what changes in between is told.
            none => {
                *none = Some(Follower::join()?);
                self.touched.all = true;
            }
        }
        if self.legacy_age == 0 {
            self.legacy = legacy::tables()?;
        }
        self.legacy_age = (self.legacy_age + 1) % LEGACY_EVERY;
        let id = generation()?;
        let is_told = id == self.generation || self.touched.generation == Some(id);
        // The number is there a moment before its notifications
        // (nf_tables_commit, net/netfilter/nf_tables_api.c).
        self.touched.all |= !is_told && self.untold == Some(id);
        self.untold = (!is_told).then_some(id);
        if is_told {
            self.generation = id;
        }
        let is_new = self.told.as_ref().is_none_or(|told| {
            let legacy = (!told.legacy_is_hidden).then_some(&told.legacy);
            legacy != self.legacy.as_ref()
        });
        Ok(is_new || self.is_stale || self.touched.all || !self.touched.tables.is_empty())
    }

    /// The ruleset as it is now.
    ///
    /// # Errors
    /// When it cannot be read, or changes during each of three attempts.
    pub fn read(&mut self) -> Result<Netfilter, SourceError> {
        let outcome = self.read_whole();
        self.is_stale = outcome.is_err();
        outcome?;
        let by: Option<Committer> = self.touched.deleted_by.take();
        self.touched.forget();
        let mut now = Netfilter {
            generation: self.generation,
            tables: self.tables.values().cloned().collect(),
            legacy: self.legacy.clone().unwrap_or_default(),
            legacy_is_hidden: self.legacy.is_none(),
            flushed: Vec::new(),
        };
        if let Some(before) = &self.told {
            now.compare(before, clock::mono(), by.as_ref());
        }
        self.told = Some(now.clone());
        Ok(now)
    }

    /// Dumps until no change spoils it.
    fn read_whole(&mut self) -> Result<(), SourceError> {
        for _ in 0..ATTEMPTS {
            let before = generation()?;
            if self.refresh()? && generation()? == before {
                self.generation = before;
                return Ok(());
            }
            if let Some(follower) = &mut self.follower {
                follower.drain(&mut self.touched)?;
            }
        }
        Err(SourceError::Unsteady { what: "dumping nftables", attempts: ATTEMPTS })
    }

    /// Dumps what changed; whether nothing changed meanwhile. What changed stays
    /// noted until a dump of it is whole.
    fn refresh(&mut self) -> Result<bool, SourceError> {
        let mut buffer = wire::buffer();
        if self.touched.all || self.touched.tables.len() > MOST_SINGLE_DUMPS {
            self.touched.all = true;
            let (tables, whole) = dump(None, &mut buffer)?;
            if whole {
                self.tables = tables;
            }
            return Ok(whole);
        }
        for one in self.touched.tables.clone() {
            let (tables, whole) = dump(Some((one.0, &one.1)), &mut buffer)?;
            if !whole {
                return Ok(false);
            }
            // Without an answer it is gone.
            self.tables.remove(&one);
            self.tables.extend(tables);
        }
        Ok(true)
    }
}

/// The number of the ruleset's latest transaction.
fn generation() -> Result<u32, SourceError> {
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
    ask(question, &mut buffer, |message| {
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

/// `struct nfgenmsg`: family, version, resource.
const fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

type Tables = BTreeMap<(Family, String), NftTable>;

/// Sums up one table or all; whether nothing changed meanwhile.
fn dump(only: Option<(Family, &str)>, buffer: &mut [u8]) -> Result<(Tables, bool), SourceError> {
    let family = only.map_or(ANY_FAMILY, |(family, _)| family.number());
    let is_asked = |family: Family, table: &str| only.is_none_or(|only| only == (family, table));
    let plain = header(family);
    let mut summary = Summary::default();
    let question = |what, kind| Question {
        what,
        protocol: NETLINK_NETFILTER,
        kind,
        is_dump: true,
        body: &plain,
    };
    let mut whole = ask(question("dumping nftables' tables", GET_TABLE), buffer, |message| {
        if let Some(table) = translate::table(message.payload)?
            && is_asked(table.family, table.name)
        {
            summary.table(&table);
        }
        Ok::<_, translate::Malformed>(())
    })?;
    let mut uses = 0_u64;
    let mut chains = Vec::new();
    whole &= ask(question("dumping nftables' chains", GET_CHAIN), buffer, |message| {
        if let Some(chain) = translate::chain(message.payload)?
            && is_asked(chain.family, chain.table)
        {
            summary.chain(&chain);
            uses = uses.saturating_add(chain.uses.into());
            if chain.uses > 0 {
                chains.push((chain.family, chain.table.to_owned(), chain.name.to_owned()));
            }
        }
        Ok::<_, translate::Malformed>(())
    })?;
    let mut rules = |family: u8, names: &[&str]| -> Result<bool, SourceError> {
        let mut body = header(family).to_vec();
        // NFTA_RULE_TABLE and NFTA_RULE_CHAIN, 1 and 2: the kernel then looks at
        // no other (nf_tables_dump_rules, net/netfilter/nf_tables_api.c).
        for (kind, name) in (1..).zip(names) {
            attribute(&mut body, kind, &[name.as_bytes(), b"\0"].concat());
        }
        let rules = Question { body: &body, ..question("dumping nftables' rules", GET_RULE) };
        ask(rules, buffer, |message| {
            if let Some(rule) = translate::rule(message.payload)?
                && is_asked(rule.family, rule.table)
            {
                summary.rule(rule);
            }
            Ok::<_, translate::Malformed>(())
        })
    };
    if uses > MOST_AT_ONCE {
        for (family, table, chain) in &chains {
            whole &= rules(family.number(), &[table, chain])?;
        }
    } else {
        let table: Vec<&str> = only.iter().map(|(_, table)| *table).collect();
        whole &= rules(family, &table)?;
    }
    let tables = summary.finish().into_iter();
    Ok((tables.map(|table| ((table.family, table.name.clone()), table)).collect(), whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dear_dump_is_followed_by_a_long_rest_and_quiet_by_none() {
        let poll = Duration::from_millis(500);
        let after = |succeeded, cpu_ms: u64, before_ms| {
            let run = Run { succeeded, cpu_ns: cpu_ms * 1_000_000 };
            rest(Some(run), Duration::from_millis(before_ms), poll)
        };
        assert_eq!(after(true, 2, 500), poll);
        assert_eq!(after(true, 100, 500), Duration::from_millis(2_500));
        assert_eq!(after(true, 1_000, 500), LONGEST_PAUSE);
        assert_eq!(after(false, 2, 500), Duration::from_secs(1));
        assert_eq!(after(false, 2, 8_000), LONGEST_PAUSE);
        assert_eq!(rest(None, LONGEST_PAUSE, poll), poll);
    }
}
