//! IP sets, asked of the kernel every few seconds: it tells nobody when they change.
//!
//! Only headers are asked for. A set of a million members costs the kernel a
//! walk over it each time, and this process nothing.

pub mod translate;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use overlaywatch_core::assembly::{SourceId, Update};
use overlaywatch_core::model::{IpSet, IpSets, Revisions, SetChange};
use overlaywatch_core::time::Mono;
use tokio::sync::mpsc::Sender;

use super::ask::{Question, ask, attribute};
use super::meter::{Closed, Run, disabled, metered, pause};
use super::{Options, SourceError, wire};
use crate::clock;
use translate::command;

/// Least time between two looks.
const INTERVAL: Duration = Duration::from_secs(5);
/// Most time between two looks, however long one takes.
const LONGEST: Duration = Duration::from_secs(60);
/// A look may take this share of a core: one thousandth.
const SHARE: u32 = 1_000;
/// Changes that are remembered.
const CHANGES: usize = 64;
/// The kernel numbers sets with 16 bits and keeps one number (`IPSET_INVALID_ID`).
const MOST_SETS: usize = 65_535;

/// `NFNL_SUBSYS_IPSET`, in the upper byte of a message's type.
const SUBSYSTEM: u16 = 6 << 8;
/// `IPSET_CMD_LIST`.
const LIST: u16 = SUBSYSTEM | 7;
/// `IPSET_CMD_TYPE`.
const TYPE: u16 = SUBSYSTEM | 13;
/// `IPSET_FLAG_LIST_HEADER`.
const HEADERS_ONLY: u32 = 1 << 2;
/// The protocol spoken: the oldest that current kernels take for these two
/// questions, and the only one of kernels before 4.20 (`IPSET_PROTOCOL_MIN`).
const PROTOCOL: u8 = 6;
/// A question to netfilter's netlink would load the module; this one is there
/// once it is loaded or built in, since it has a parameter (`max_sets`).
const MODULE: &str = "/sys/module/ip_set";
/// How kube-router names the sets that it swaps in and destroys at once.
const TEMPORARY: &str = "TMP-";

/// Asks for all sets until nobody listens any more.
///
/// # Errors
/// [`Closed`] when the receiving end is gone; if disabled it returns at once.
pub fn run(options: &Options, updates: &Sender<Update>) -> Result<(), Closed> {
    if !options.enabled.contains(&SourceId::Ipset) {
        return disabled(updates, SourceId::Ipset);
    }
    let mut watch = Watch::default();
    loop {
        let run = metered(updates, SourceId::Ipset, || {
            let sets = if Path::new(MODULE).exists() {
                read(&watch.known.types)?
            } else {
                (vec![], BTreeMap::new())
            };
            Ok(Update::Ipset(Box::new(watch.compare(sets, clock::mono()))))
        })?;
        pause(rest(run), updates)?;
    }
}

/// How long to rest after a look: longer where many sets or members make it slow.
fn rest(run: Run) -> Duration {
    Duration::from_nanos(run.cpu_ns).saturating_mul(SHARE).clamp(INTERVAL, LONGEST)
}

type Read = (Vec<IpSet>, BTreeMap<String, Revisions>);

/// All sets, and what the kernel offers of their types; of a type in `known`
/// that is not asked again.
fn read(known: &BTreeMap<String, Revisions>) -> Result<Read, SourceError> {
    let mut buffer = wire::buffer();
    let mut sets = Vec::new();
    let mut body = request(libc::AF_UNSPEC);
    attribute(&mut body, command::FLAGS | NET_BYTEORDER, &HEADERS_ONLY.to_be_bytes());
    let list = Question {
        what: "listing IP sets",
        protocol: NETLINK_NETFILTER,
        kind: LIST,
        is_dump: true,
        body: &body,
    };
    ask(list, &mut buffer, |message| {
        let set = if message.kind == LIST { translate::set(message.payload)? } else { None };
        sets.extend(set.filter(|_| sets.len() < MOST_SETS));
        Ok::<_, translate::Malformed>(())
    })?;
    sets.sort_by(|a, b| a.name.cmp(&b.name));
    let mut types = BTreeMap::new();
    for set in &sets {
        if types.contains_key(&set.kind) {
            continue;
        }
        let offered = match known.get(&set.kind) {
            Some(&revisions) => Some(revisions),
            None => kind(set, &mut buffer)?,
        };
        types.extend(offered.map(|revisions| (set.kind.clone(), revisions)));
    }
    Ok((sets, types))
}

/// `NLA_F_NET_BYTEORDER`.
const NET_BYTEORDER: u16 = 1 << 14;

/// What the kernel offers of a set's type; none if the last set of it is gone
/// and its module with it.
fn kind(set: &IpSet, buffer: &mut [u8]) -> Result<Option<Revisions>, SourceError> {
    let family = match set.family {
        Some(6) => libc::AF_INET6,
        Some(_) => libc::AF_INET,
        None => libc::AF_UNSPEC,
    };
    let mut body = request(family);
    attribute(&mut body, command::TYPENAME, &[set.kind.as_bytes(), &[0]].concat());
    attribute(&mut body, command::FAMILY, &[u8::try_from(family).unwrap_or(0)]);
    let question = Question {
        what: "asking for an IP set type",
        protocol: NETLINK_NETFILTER,
        kind: TYPE,
        is_dump: false,
        body: &body,
    };
    let mut found = None;
    let answer = ask(question, buffer, |message| {
        if message.kind == TYPE {
            found = Some(translate::revisions(message.payload)?);
        }
        Ok::<_, translate::Malformed>(())
    });
    match answer {
        Err(SourceError::Io { source, .. }) if is_unknown_type(&source) => Ok(None),
        answer => answer.map(|_| found),
    }
}

/// `IPSET_ERR_FIND_TYPE`: ipset's own error numbers begin at 4096
/// (`IPSET_ERR_PRIVATE`).
fn is_unknown_type(error: &io::Error) -> bool {
    error.raw_os_error() == Some(4098)
}

/// `struct nfgenmsg` and the protocol.
fn request(family: libc::c_int) -> Vec<u8> {
    let mut body = vec![u8::try_from(family).unwrap_or(0), 0, 0, 0];
    attribute(&mut body, command::PROTOCOL, &[PROTOCOL]);
    body
}

/// Compares each look with the one before.
#[derive(Debug, Default)]
struct Watch {
    known: IpSets,
}

impl Watch {
    fn compare(&mut self, (sets, types): Read, at: Mono) -> IpSets {
        let mut before = self.known.sets.iter().peekable();
        let mut changes = std::mem::take(&mut self.known.changes);
        // Both lists are in order of name.
        for set in &sets {
            while before.next_if(|old| old.name < set.name).is_some() {}
            if let Some(old) = before.next_if(|old| old.name == set.name)
                && (old.kind == set.kind && old.revision != set.revision)
            {
                changes.push(SetChange {
                    set: set.name.clone(),
                    from: old.revision,
                    to: set.revision,
                    at,
                });
            }
        }
        changes.drain(..changes.len().saturating_sub(CHANGES));
        let temporary = sets.iter().find(|set| set.name.starts_with(TEMPORARY));
        let temporary =
            temporary.map(|set| (set.name.clone(), at)).or_else(|| self.known.temporary.take());
        self.known = IpSets { sets, types, changes, temporary };
        self.known.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, revision: u8) -> IpSet {
        IpSet { name: name.to_owned(), kind: "hash:ip".to_owned(), revision, ..IpSet::default() }
    }

    fn look(watch: &mut Watch, sets: &[(&str, u8)], at: u64) -> IpSets {
        let sets = sets.iter().map(|(name, revision)| set(name, *revision)).collect();
        watch.compare((sets, BTreeMap::new()), Mono(at))
    }

    #[test]
    fn a_set_of_another_revision_is_a_change_and_others_are_not() {
        let mut watch = Watch::default();
        assert_eq!(look(&mut watch, &[("a", 5), ("c", 5), ("d", 5)], 1).changes, []);
        let found = look(&mut watch, &[("a", 5), ("b", 6), ("c", 6), ("e", 6)], 2);
        let raised = SetChange { set: "c".to_owned(), from: 5, to: 6, at: Mono(2) };
        assert_eq!(found.changes, std::slice::from_ref(&raised));
        // It is remembered, also while the set is gone.
        assert_eq!(look(&mut watch, &[], 3).changes, std::slice::from_ref(&raised));
        assert_eq!(look(&mut watch, &[("c", 5)], 4).changes, [raised]);
    }

    #[test]
    fn changes_are_bounded_and_the_latest_kept() {
        let mut watch = Watch::default();
        for round in 0..200_u8 {
            look(&mut watch, &[("a", round % 7)], round.into());
        }
        let changes = look(&mut watch, &[("a", 9)], 999).changes;
        assert_eq!(changes.len(), CHANGES);
        assert_eq!(changes.last().unwrap().at, Mono(999));
    }

    #[test]
    fn a_temporary_set_is_remembered() {
        let mut watch = Watch::default();
        assert_eq!(look(&mut watch, &[("a", 5)], 1).temporary, None);
        let expected = Some(("TMP-1".to_owned(), Mono(2)));
        assert_eq!(look(&mut watch, &[("TMP-1", 5), ("a", 5)], 2).temporary, expected);
        assert_eq!(look(&mut watch, &[("a", 5)], 3).temporary, expected);
    }

    #[test]
    fn a_slow_look_is_taken_seldom() {
        let after = |cpu_ns| rest(Run { succeeded: true, cpu_ns });
        assert_eq!(after(1_500_000), INTERVAL);
        assert_eq!(after(20_000_000), Duration::from_secs(20));
        assert_eq!(after(10_000_000_000), LONGEST);
    }
}
