//! The judge: what was wanted against what the agents said, and when. Pure:
//! it is given times and knows no clock.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use overlaywatch_core::catalog::Code;
use overlaywatch_core::diagnose::Status;
use overlaywatch_core::finding::Direction;
use overlaywatch_core::ladder::Segment;
use serde::Serialize;

/// What a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum About {
    /// The node itself.
    Node,
    /// One of its devices.
    Device(String),
    /// Something else that it has, by the word /health has for it.
    Thing(String, String),
    /// Its traffic with the peer of this underlay address.
    Peer(IpAddr),
}

/// A finding as a node's /health shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Observed {
    /// What.
    pub code: Code,
    /// About what.
    pub about: About,
    /// Which way.
    pub direction: Option<Direction>,
    /// Where.
    pub hop: Option<Hops>,
    /// Its evidence, a sentence a line.
    #[serde(skip)]
    pub evidence: String,
}

/// A segment of the ladder, ordered, so that findings can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Hops {
    /// Where packets were last seen.
    pub from: overlaywatch_core::ladder::Hop,
    /// Where they were missing first.
    pub to: overlaywatch_core::ladder::Hop,
}

impl From<Segment> for Hops {
    fn from(Segment { from, to }: Segment) -> Self {
        Self { from, to }
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.slug())?;
        match &self.about {
            About::Node => {}
            About::Device(name) => write!(f, " of {name}")?,
            About::Thing(what, name) => write!(f, " of {what} {name}")?,
            About::Peer(address) => write!(f, " of {address}")?,
        }
        if let Some(direction) = self.direction {
            write!(f, ", {}", direction.slug())?;
        }
        if let Some(Hops { from, to }) = self.hop {
            write!(f, ", {from}→{to}")?;
        }
        Ok(())
    }
}

/// What a node's /health said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing: no agent answers.
    Nothing,
    /// A verdict.
    Verdict {
        /// In one word.
        status: Status,
        /// Findings that are no consequence of another.
        findings: Vec<Observed>,
        /// Peers, and how many of them are healthy.
        peers: (u32, u32),
    },
}

impl Said {
    /// Whether all is well: nothing found, every one of `peers` healthy.
    #[must_use]
    pub fn is_calm(&self, peers: usize) -> bool {
        match self {
            Self::Nothing => false,
            Self::Verdict { status, findings, peers: (expected, healthy) } => {
                *status == Status::Pass
                    && findings.is_empty()
                    && expected == healthy
                    && usize::try_from(*healthy) == Ok(peers)
            }
        }
    }

    /// The finding that is wanted, else one that differs in its details alone.
    #[must_use]
    pub fn named(&self, wanted: &Wanted) -> Option<&Observed> {
        let find = |fits: fn(&Wanted, usize, &Observed) -> bool| {
            self.findings().iter().find(|found| fits(wanted, wanted.node, found))
        };
        find(Wanted::is_met_by).or_else(|| find(Wanted::names))
    }

    fn findings(&self) -> &[Observed] {
        match self {
            Self::Nothing => &[],
            Self::Verdict { findings, .. } => findings,
        }
    }
}

/// What one node said from one moment on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When, since the run began.
    pub at: Duration,
    /// Who.
    pub node: usize,
    /// What.
    pub said: Said,
}

/// A finding that a node must show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wanted {
    /// Who, as an index.
    #[serde(skip)]
    pub node: usize,
    /// What; none when any finding will do whose details are right.
    pub code: Option<Code>,
    /// About what.
    pub about: About,
    /// Which way: one of these; none of them when there must be no direction.
    pub directions: Vec<Direction>,
    /// Where: one of these; none of them when there must be no hop.
    pub hops: Vec<Segment>,
    /// Direction and hop may be missing both.
    #[serde(skip)]
    pub or_unplaced: bool,
    /// What its evidence must name.
    pub tells: Vec<&'static str>,
}

impl Wanted {
    /// Whether this is the finding, its details apart.
    fn names(&self, node: usize, observed: &Observed) -> bool {
        (self.node, &self.about) == (node, &observed.about)
            && self.code.is_none_or(|code| code == observed.code)
    }

    /// Whether this is the finding, and its details are right.
    #[must_use]
    pub fn is_met_by(&self, node: usize, observed: &Observed) -> bool {
        let direction_fits = match observed.direction {
            None => self.directions.is_empty(),
            Some(direction) => self.directions.contains(&direction),
        };
        let hop_fits = match observed.hop {
            None => self.hops.is_empty(),
            Some(hop) => self.hops.iter().any(|&wanted| Hops::from(wanted) == hop),
        };
        let is_unplaced = observed.direction.is_none() && observed.hop.is_none();
        let place_fits = (direction_fits && hop_fits) || (self.or_unplaced && is_unplaced);
        let tells_all = self.tells.iter().all(|name| observed.evidence.contains(name));
        self.names(node, observed) && place_fits && tells_all
    }
}

/// Everything that all nodes said, in order of time; each sample holds until
/// the same node's next.
#[derive(Clone, Debug, Default)]
pub struct Timeline(Vec<Sample>);

impl Timeline {
    /// Takes the next sample; one that says nothing new is not kept.
    pub fn push(&mut self, sample: Sample) {
        if self.now(sample.node) != Some(&sample.said) {
            self.0.push(sample);
        }
    }

    /// What a node said last.
    #[must_use]
    pub fn now(&self, node: usize) -> Option<&Said> {
        self.0.iter().rfind(|sample| sample.node == node).map(|sample| &sample.said)
    }

    /// When a wanted finding was first there, at or after `since`.
    #[must_use]
    pub fn first(&self, since: Duration, wanted: &Wanted) -> Option<Duration> {
        self.in_force(since)
            .find(|(sample, _)| {
                sample.said.findings().iter().any(|found| wanted.is_met_by(sample.node, found))
            })
            .map(|(sample, _)| sample.at.max(since))
    }

    /// Whether a wanted finding stands now.
    #[must_use]
    pub fn stands(&self, wanted: &Wanted) -> bool {
        self.now(wanted.node)
            .is_some_and(|said| said.findings().iter().any(|f| wanted.is_met_by(wanted.node, f)))
    }

    /// What nodes said at or after `since` that nobody wanted. A wanted finding
    /// whose direction or hop is not yet right is not among them: it must only
    /// be right in the end.
    #[must_use]
    pub fn unwanted(&self, since: Duration, wanted: &[Wanted]) -> BTreeSet<(usize, Observed)> {
        self.in_force(since)
            .flat_map(|(sample, _)| sample.said.findings().iter().map(|f| (sample.node, f)))
            .filter(|(node, found)| !wanted.iter().any(|wanted| wanted.names(*node, found)))
            // The same finding with other numbers is one finding.
            .map(|(node, found)| (node, Observed { evidence: String::new(), ..found.clone() }))
            .collect()
    }

    /// Since when a node has been calm without a break; none when it is not.
    #[must_use]
    pub fn calm_since(&self, node: usize, peers: usize) -> Option<Duration> {
        self.0
            .iter()
            .rev()
            .filter(|sample| sample.node == node)
            .take_while(|sample| sample.said.is_calm(peers))
            .map(|sample| sample.at)
            .last()
    }

    /// Samples that were in force at `since` or came later, each with its end.
    fn in_force(&self, since: Duration) -> impl Iterator<Item = (&Sample, Option<Duration>)> {
        self.0.iter().enumerate().filter_map(move |(position, sample)| {
            let rest = self.0.get(position + 1..).unwrap_or_default();
            let end = rest.iter().find(|later| later.node == sample.node).map(|later| later.at);
            end.is_none_or(|end| end > since).then_some((sample, end))
        })
    }
}

#[cfg(test)]
mod tests {
    use overlaywatch_core::ladder::Hop;

    use super::*;

    const PEER: About = About::Peer(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 12)));
    const LOST: Segment = Segment { from: Hop::Sent, to: Hop::Delivered };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn lost(direction: Direction) -> Observed {
        Observed {
            code: Code::EncapsulationLost,
            about: PEER,
            direction: Some(direction),
            hop: Some(LOST.into()),
            evidence: "9 of 9 probes lost".to_owned(),
        }
    }

    fn wanted(direction: Direction) -> Wanted {
        Wanted {
            node: 0,
            code: Some(Code::EncapsulationLost),
            about: PEER,
            directions: vec![direction],
            hops: vec![LOST],
            or_unplaced: false,
            tells: vec![],
        }
    }

    fn timeline(samples: &[(u64, usize, &[Observed])]) -> Timeline {
        let mut timeline = Timeline::default();
        for &(seconds, node, findings) in samples {
            let status = if findings.is_empty() { Status::Pass } else { Status::Fail };
            let healthy = u32::from(findings.is_empty());
            let said = Said::Verdict { status, findings: findings.to_vec(), peers: (1, healthy) };
            timeline.push(Sample { at: at(seconds), node, said });
        }
        timeline
    }

    #[test]
    fn a_finding_counts_when_its_details_are_right() {
        let timeline = timeline(&[
            (0, 0, &[]),
            (12, 0, &[lost(Direction::Outbound)]),
            (14, 0, &[lost(Direction::Both)]),
        ]);
        assert_eq!(timeline.first(at(10), &wanted(Direction::Both)), Some(at(14)));
        assert_eq!(timeline.first(at(10), &wanted(Direction::Inbound)), None);
        assert!(timeline.stands(&wanted(Direction::Both)));
        assert!(!timeline.stands(&wanted(Direction::Outbound)));
        // The detail that was not yet right is no foreign finding.
        assert!(timeline.unwanted(at(0), &[wanted(Direction::Both)]).is_empty());
    }

    #[test]
    fn what_nobody_wanted_is_found_even_if_it_went_again() {
        let timeline =
            timeline(&[(0, 0, &[]), (12, 1, &[lost(Direction::Both)]), (13, 1, &[]), (20, 0, &[])]);
        let unwanted = timeline.unwanted(at(10), &[wanted(Direction::Both)]);
        let found = Observed { evidence: String::new(), ..lost(Direction::Both) };
        assert_eq!(unwanted.into_iter().collect::<Vec<_>>(), [(1, found)]);
        assert!(timeline.unwanted(at(13), &[]).is_empty());
    }

    #[test]
    fn what_holds_from_before_counts() {
        let timeline = timeline(&[(5, 0, &[lost(Direction::Both)])]);
        assert_eq!(timeline.first(at(10), &wanted(Direction::Both)), Some(at(10)));
        assert_eq!(timeline.unwanted(at(10), &[]).len(), 1);
    }

    #[test]
    fn a_finding_that_must_have_no_direction_has_none() {
        let silent = Observed {
            code: Code::AgentSilent,
            direction: None,
            hop: None,
            ..lost(Direction::Both)
        };
        let wanted = Wanted {
            node: 0,
            code: Some(Code::AgentSilent),
            about: PEER,
            directions: Vec::new(),
            hops: Vec::new(),
            or_unplaced: false,
            tells: vec!["9 of 9"],
        };
        assert!(wanted.is_met_by(0, &silent));
        assert!(!Wanted { tells: vec!["8 of 9"], ..wanted.clone() }.is_met_by(0, &silent));
        assert!(!wanted.is_met_by(1, &silent));
        assert!(!wanted.is_met_by(0, &Observed { direction: Some(Direction::Both), ..silent }));
    }

    #[test]
    fn what_may_be_unplaced_lacks_both_or_has_both_right() {
        let wanted = Wanted { or_unplaced: true, ..wanted(Direction::Outbound) };
        let unplaced = Observed { direction: None, hop: None, ..lost(Direction::Outbound) };
        assert!(wanted.is_met_by(0, &unplaced) && wanted.is_met_by(0, &lost(Direction::Outbound)));
        assert!(!wanted.is_met_by(0, &lost(Direction::Inbound)));
        assert!(!wanted.is_met_by(0, &Observed { direction: None, ..lost(Direction::Outbound) }));
        assert!(!Wanted { or_unplaced: false, ..wanted }.is_met_by(0, &unplaced));
    }

    #[test]
    fn without_a_code_the_place_decides() {
        let wanted = Wanted { code: None, ..wanted(Direction::Outbound) };
        let refused = Observed { code: Code::EncapsulationRefused, ..lost(Direction::Outbound) };
        let elsewhere = Observed { hop: None, ..refused.clone() };
        assert!(wanted.is_met_by(0, &refused) && !wanted.is_met_by(0, &elsewhere));
        let timeline = timeline(&[(0, 0, &[elsewhere, refused.clone()])]);
        assert!(timeline.stands(&wanted));
        assert_eq!(timeline.now(0).unwrap().named(&wanted), Some(&refused));
        assert!(timeline.unwanted(at(0), &[wanted]).is_empty());
    }

    #[test]
    fn calm_is_without_a_break() {
        let mut timeline =
            timeline(&[(1, 0, &[]), (5, 0, &[lost(Direction::Both)]), (9, 0, &[]), (9, 1, &[])]);
        assert_eq!(timeline.calm_since(0, 1), Some(at(9)));
        assert_eq!(timeline.calm_since(1, 1), Some(at(9)));
        assert_eq!(timeline.calm_since(2, 1), None);
        assert_eq!(timeline.calm_since(0, 2), None, "two peers are not one");
        timeline.push(Sample { at: at(11), node: 0, said: Said::Nothing });
        assert_eq!(timeline.calm_since(0, 1), None);
    }

    #[test]
    fn repetitions_are_not_kept() {
        let timeline = timeline(&[(1, 0, &[]), (2, 0, &[]), (3, 1, &[])]);
        assert_eq!(timeline.0.len(), 2);
    }
}
