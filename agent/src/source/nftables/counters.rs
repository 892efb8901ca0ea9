//! Counters of the rules that may drop outer packets.

use std::io;

use overlaywatch_core::model::NftTable;
use overlaywatch_core::time::{Mono, SECOND};

use super::dump::{Tables, packets};
use super::translate::is_exact;
use crate::source::ask::Line;
use crate::source::{SourceError, wire};

/// Rules whose counters are asked for. The kernel finds a rule by going through
/// its chain (nft_rule_lookup, net/netfilter/nf_tables_api.c).
const MOST_ASKED: usize = 64;
/// How often they are asked for, nanoseconds; the latter while something is lost.
const EVERY_NS: u64 = 5 * SECOND;
const LOSING_NS: u64 = SECOND;
/// The longest time between two looks, whatever they take, nanoseconds.
const LONGEST_NS: u64 = 60 * SECOND;
/// A look may take this share of the time, one in 1000.
const SHARE: u64 = 1000;

/// The latest look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    /// When it began.
    pub(super) at: Mono,
    /// How long it took, nanoseconds.
    pub(super) took_ns: u64,
}

impl Look {
    /// Whether it is time for another.
    pub(super) fn is_over(self, now: Mono, is_losing: bool) -> bool {
        let fair = self.took_ns.saturating_mul(SHARE);
        let least = if is_losing { LOSING_NS } else { EVERY_NS };
        now.since(self.at) >= fair.clamp(least, LONGEST_NS)
    }
}

/// Asks for the counters of those rules that most likely mean a tunnel's packets;
/// whether one grew since the look at `since`.
pub(super) fn recount(
    tables: &mut Tables,
    line: &mut Line,
    since: Mono,
    at: Mono,
) -> Result<bool, SourceError> {
    let mut asked: Vec<_> = tables
        .values_mut()
        .filter(|table| is_exact(&table.name))
        .flat_map(|NftTable { family, name, blockers, .. }| {
            blockers.iter_mut().map(|blocker| (*family, name.as_str(), blocker))
        })
        .filter(|(_, _, blocker)| blocker.packets.is_some() && is_exact(&blocker.at.chain))
        .collect();
    asked.sort_by_key(|(_, _, blocker)| blocker.matches.rank());
    if asked.is_empty() {
        return Ok(false);
    }
    let mut buffer = wire::buffer();
    let mut has_grown = false;
    for (family, table, blocker) in asked.into_iter().take(MOST_ASKED) {
        match packets(line, family, table, &blocker.at, &mut buffer) {
            Ok(Some(packets)) => has_grown |= blocker.count(packets, since, at),
            Ok(None) => {}
            // It went, which will be told.
            Err(SourceError::Io { source, .. }) if is_gone(&source) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(has_grown)
}

fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_take_long_are_rarer() {
        let is_over = |took_ns, seconds: u64, is_losing| {
            let look = Look { at: Mono(7), took_ns };
            look.is_over(Mono(7 + seconds * SECOND), is_losing)
        };
        let short = SECOND / 10_000;
        assert!(!is_over(short, 4, false) && is_over(short, 5, false));
        assert!(!is_over(short, 0, true) && is_over(short, 1, true));
        assert!(!is_over(SECOND / 100, 9, true) && is_over(SECOND / 100, 10, true));
        assert!(!is_over(SECOND, 59, true) && is_over(SECOND, 60, false));
    }
}
