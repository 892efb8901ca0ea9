//! Findings over time: raised when they last, cleared when they are gone for
//! good, and each consequence put under its cause.

use std::collections::BTreeMap;

use crate::catalog::Code;
use crate::diagnose::Active;
use crate::finding::{Direction, Finding, FindingKey, Subject};
use crate::ladder::Segment;
use crate::rules::Verdicts;
use crate::time::{MILLISECOND, Mono, Now, SECOND};

/// Evaluations that must agree before anything is raised.
const EVALUATIONS: u32 = 2;

#[derive(Clone, Debug)]
struct Entry {
    finding: Finding,
    /// Another direction or place, seen once: at the end of a fault the last
    /// losses tell less than those before.
    other: Option<(Option<Direction>, Option<Segment>)>,
    first_seen: Mono,
    last_seen: Mono,
    evaluations: u32,
    raised: bool,
    parent: Option<FindingKey>,
}

impl Entry {
    /// Takes the latest evidence; another direction or place only when two
    /// evaluations in a row agree on it. Where nothing was lost lately, what was told
    /// before of the place is worth more.
    fn take(&mut self, mut finding: Finding) {
        if finding.code.comes_and_goes() && finding.confidence < self.finding.confidence {
            finding.hop = self.finding.hop;
            finding.confidence = self.finding.confidence;
        }
        let place = (finding.direction, finding.hop);
        let is_the_same = place == (self.finding.direction, self.finding.hop);
        if is_the_same || !self.raised || self.other == Some(place) {
            self.finding = finding;
            self.other = None;
        } else {
            self.other = Some(place);
        }
    }
}

/// All findings that are in force or on their way to it.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<FindingKey, Entry>,
}

impl Ledger {
    /// Takes one evaluation and gives what is in force after it: most severe
    /// first, then oldest first.
    pub fn update(&mut self, now: Now, verdicts: Verdicts) -> Vec<Active> {
        let at = now.mono;
        for entry in self.entries.values_mut() {
            // What cannot be judged is not gone.
            if verdicts.blind.contains(&entry.finding.code) {
                entry.last_seen = at;
            }
        }
        for finding in verdicts.findings {
            let entry = self.entries.entry(finding.key()).or_insert_with(|| Entry {
                finding: finding.clone(),
                other: None,
                first_seen: at,
                last_seen: at,
                evaluations: 0,
                raised: false,
                parent: None,
            });
            entry.take(finding);
            entry.last_seen = at;
            entry.evaluations = entry.evaluations.saturating_add(1);
        }
        self.expire(at);
        self.find_parents();
        self.raise(at);
        self.in_force(now)
    }

    fn expire(&mut self, at: Mono) {
        self.entries.retain(|_, entry| {
            if entry.last_seen == at {
                return true;
            }
            // A consequence goes when it is no longer seen: its cause keeps watch.
            if !entry.raised || entry.parent.is_some() {
                return false;
            }
            let dwell = u64::from(entry.finding.code.entry().clear_after_seconds) * SECOND;
            at.since(entry.last_seen) < dwell
        });
    }

    fn find_parents(&mut self) {
        let parents: Vec<(FindingKey, Option<FindingKey>)> = self
            .entries
            .iter()
            .map(|(key, entry)| {
                let mut causes = key
                    .code
                    .entry()
                    .parents()
                    .flat_map(|code| self.causes(code, &key.subject))
                    .filter(|(_, cause)| explains(&cause.finding, &entry.finding));
                let first = causes.next();
                // What is in force already would have no cause in force while a
                // likelier one is not yet sure of itself.
                let parent = match first {
                    Some((_, cause)) if entry.raised && !cause.raised => {
                        causes.find(|(_, cause)| cause.raised).or(first)
                    }
                    _ => first,
                };
                let parent = parent.map(|(cause, _)| cause.clone());
                (key.clone(), parent)
            })
            .collect();
        for (key, parent) in parents {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.parent = parent;
            }
        }
    }

    /// Entries with this code that cover the subject: those on the whole node or
    /// a part of it, then those on the same pair. Keys are in this very order.
    fn causes<'a>(
        &'a self,
        code: Code,
        narrow: &'a Subject,
    ) -> impl Iterator<Item = (&'a FindingKey, &'a Entry)> {
        let of_code = move |subject| {
            let from = FindingKey { code, subject };
            self.entries.range(from..).take_while(move |(key, _)| key.code == code)
        };
        let wide = of_code(Subject::Node).take_while(|(key, _)| key.subject.peer().is_none());
        let same = narrow.peer().into_iter().flat_map(move |peer| {
            of_code(Subject::Pair { peer, encapsulation: None })
                .take_while(move |(key, _)| key.subject.peer() == Some(peer))
        });
        wide.chain(same).filter(|(key, _)| covers(&key.subject, narrow))
    }

    fn raise(&mut self, at: Mono) {
        let raised: Vec<FindingKey> = self
            .entries
            .iter()
            .filter(|(_, entry)| {
                let dwell = u64::from(entry.finding.code.entry().raise_after_ms) * MILLISECOND;
                entry.evaluations >= EVALUATIONS && at.since(entry.first_seen) >= dwell
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in raised {
            // Held back while its possible cause is not yet sure of itself.
            let held = self
                .entries
                .get(&key)
                .and_then(|entry| entry.parent.as_ref())
                .and_then(|parent| self.entries.get(parent))
                .is_some_and(|parent| !parent.raised);
            if let Some(entry) = self.entries.get_mut(&key).filter(|_| !held) {
                entry.raised = true;
            }
        }
    }

    fn in_force(&self, now: Now) -> Vec<Active> {
        let mut active: Vec<Active> = self
            .entries
            .values()
            .filter(|entry| entry.raised)
            .map(|entry| Active {
                finding: entry.finding.clone(),
                since: now.wall_of(entry.first_seen),
                parent: entry.parent.clone(),
            })
            .collect();
        active.sort_by_key(|active| {
            (std::cmp::Reverse(active.finding.code.entry().severity), active.since)
        });
        active
    }
}

/// Whether packets that vanish as `loss` says may vanish because of `cause`: on
/// the same stretch of the same way. Two faults of one pair stay two.
fn explains(cause: &Finding, loss: &Finding) -> bool {
    let same_way = match (cause.direction, loss.direction) {
        (None | Some(Direction::Both), _) | (_, None | Some(Direction::Both)) => true,
        (Some(one), Some(other)) => one == other,
    };
    let same_stretch = match (cause.hop, loss.hop) {
        (Some(one), Some(other)) => one.overlaps(other),
        (None, _) | (_, None) => true,
    };
    same_way && same_stretch
}

/// Whether a cause on `wide` can have `narrow` as its consequence.
fn covers(wide: &Subject, narrow: &Subject) -> bool {
    match (wide, narrow) {
        (Subject::Node | Subject::Device { .. } | Subject::Thing { .. }, _) => true,
        (
            Subject::Pair { peer: wide, encapsulation: any },
            Subject::Pair { peer: narrow, encapsulation: one },
        ) => wide == narrow && (any.is_none() || one.is_none() || any == one),
        (Subject::Pair { .. }, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Confidence;
    use crate::ladder::Hop;
    use crate::model::{Encapsulation, PeerId};

    fn finding(code: Code, subject: Subject) -> Finding {
        Finding {
            code,
            subject,
            direction: Some(Direction::Outbound),
            hop: None,
            evidence: Vec::new(),
            confidence: Confidence::Certain,
        }
    }

    #[test]
    fn what_comes_and_goes_is_where_it_was_lost_last() {
        let peer = PeerId([10, 0, 0, 12].into());
        let subject = Subject::Pair { peer, encapsulation: None };
        let arrival = Segment { from: Hop::ReachedNic, to: Hop::Delivered };
        let wire = Segment { from: Hop::LeftNic, to: Hop::ReachedNic };
        let lost = |hop: Segment, confidence| {
            let loss = finding(Code::UnderlayLoss, subject.clone());
            Verdicts {
                findings: vec![Finding { hop: Some(hop), confidence, ..loss }],
                blind: Vec::new(),
            }
        };
        let mut ledger = Ledger::default();
        let mut now = Now::default();
        let mut hop_after = |hop, confidence| {
            now.mono = now.mono.plus(SECOND);
            let active = ledger.update(now, lost(hop, confidence));
            active.first().and_then(|active| active.finding.hop)
        };
        hop_after(arrival, Confidence::High);
        for _ in 0..3 {
            assert_eq!(hop_after(wire, Confidence::Low), Some(arrival));
        }
        hop_after(wire, Confidence::High);
        assert_eq!(hop_after(wire, Confidence::High), Some(wire));
    }

    #[test]
    fn a_consequence_in_force_always_has_a_cause_in_force() {
        let pair = || Subject::Pair {
            peer: PeerId([10, 0, 0, 12].into()),
            encapsulation: Some(Encapsulation::Vxlan(8472)),
        };
        let queue = finding(Code::QdiscDrops, Subject::Device { name: "flannel.1".to_owned() });
        let loss = finding(Code::UnexplainedLoss, pair());
        let likelier = finding(Code::LocalOutputDrop, pair());
        let mut ledger = Ledger::default();
        for second in 0..8 {
            let mut findings = vec![queue.clone(), loss.clone()];
            if second >= 4 {
                findings.push(likelier.clone());
            }
            let now = Now { mono: Mono(second * SECOND), ..Now::default() };
            let active = ledger.update(now, Verdicts { findings, blind: Vec::new() });
            for parent in active.iter().filter_map(|active| active.parent.as_ref()) {
                let is_in_force = active.iter().any(|cause| cause.finding.key() == *parent);
                assert!(is_in_force, "second {second}: {parent:?} is not in force");
            }
            let of_loss = active.iter().find(|active| active.finding.code == loss.code);
            let cause = of_loss.and_then(|active| active.parent.as_ref()).map(|key| key.code);
            let expected = match second {
                0 | 1 => None,
                2..=5 => Some(Code::QdiscDrops),
                _ => Some(Code::LocalOutputDrop),
            };
            assert_eq!(cause, expected, "second {second}");
        }
    }
}
