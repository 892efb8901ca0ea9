//! Netfilter: the nftables ruleset, followed by its generation, and which tables
//! of the older xtables are there.
//!
//! Each tick asks for the generation, which costs a microsecond. Only when it
//! changed are tables dumped again, and of these only the ones that the
//! notifications of the change named. What rules count changes no generation: the
//! counters of those few that are kept since they drop are asked for one by one.

mod counters;
mod dump;
mod follow;
mod legacy;
pub mod translate;

use std::time::Duration;

use overlaywatch_core::assembly::{SourceId, Update};
use overlaywatch_core::model::{Committer, LegacyTable, Netfilter};
use tokio::sync::mpsc::Sender;

use super::ask::Line;
use super::meter::{Closed, Run, disabled, metered, pause};
use super::{Options, SourceError, wire};
use crate::clock;
use counters::Look;
use dump::{Tables, dump, generation};
use follow::{Follower, Touched};

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
        reader.set_losing(*options.losing.borrow());
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
    tables: Tables,
    /// All questions go by it.
    line: Line,
    /// When the counters of rules were looked at.
    counted: Look,
    is_losing: bool,
    /// None while they are hidden.
    legacy: Option<Vec<LegacyTable>>,
    legacy_age: u32,
    /// The generation up to which everything is known.
    generation: u32,
    /// A transaction was not told to its end at the last look.
    waits: bool,
    /// A generation that no notification told of yet.
    untold: Option<u32>,
    /// What was told last.
    told: Option<Netfilter>,
    /// It is no longer relied on, since the kernel refused to tell more.
    is_stale: bool,
}

impl Reader {
    /// Something is lost, or nothing any more: so often counters are looked at.
    pub fn set_losing(&mut self, is_losing: bool) {
        self.is_losing = is_losing;
    }

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
        // Who made it comes last. One look is waited for it, whoever commits without
        // pause.
        self.waits = self.touched.is_open && !self.waits;
        if self.waits {
            return Ok(false);
        }
        if self.legacy_age == 0 {
            self.legacy = legacy::tables()?;
        }
        self.legacy_age = (self.legacy_age + 1) % LEGACY_EVERY;
        let id = generation(&mut self.line)?;
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
        let has_grown = self.recount()?;
        let is_touched = self.touched.all || !self.touched.tables.is_empty();
        Ok(is_new || has_grown || self.is_stale || is_touched)
    }

    /// Looks at the counters of rules that drop, now and then; whether one grew.
    fn recount(&mut self) -> Result<bool, SourceError> {
        let at = clock::mono();
        if !self.counted.is_over(at, self.is_losing) {
            return Ok(false);
        }
        let since = self.counted.at;
        let has_grown = counters::recount(&mut self.tables, &mut self.line, since, at)?;
        self.counted = Look { at, took_ns: clock::mono().since(at) };
        Ok(has_grown)
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
            let before = generation(&mut self.line)?;
            if self.refresh()? && generation(&mut self.line)? == before {
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
            let (tables, whole) = dump(&mut self.line, None, &mut buffer)?;
            if whole {
                let before = std::mem::take(&mut self.tables);
                self.take(tables, &before);
            }
            return Ok(whole);
        }
        for one in self.touched.tables.clone() {
            let (tables, whole) = dump(&mut self.line, Some((one.0, &one.1)), &mut buffer)?;
            if !whole {
                return Ok(false);
            }
            // Without an answer it is gone.
            let before = self.tables.remove_entry(&one).into_iter().collect();
            self.take(tables, &before);
        }
        Ok(true)
    }

    /// Takes tables that were read in place of those before.
    fn take(&mut self, tables: Tables, before: &Tables) {
        let at = clock::mono();
        self.tables.extend(tables.into_iter().map(|(key, mut table)| {
            if let Some(before) = before.get(&key) {
                table.count_on(before, self.counted.at, at);
            }
            (key, table)
        }));
    }
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
