//! The mesh as a table: what each node says of each other one.

use std::net::IpAddr;

use overlaywatch_core::diagnose::PeerState;
use overlaywatch_core::pairs::Total;
use overlaywatch_core::probing::Stream;
use overlaywatch_core::report::{NodeReport, PeerReport};
use serde::Serialize;

use crate::topology::Cluster;

/// What one node says of another.
#[derive(Debug, Serialize)]
pub struct Pair {
    /// Who says it.
    pub from: String,
    /// Of whom.
    pub to: String,
    /// The underlay, by the probes of the last seconds.
    pub underlay: Path,
    /// The overlay, by the small probes of the last seconds.
    pub overlay: Path,
    /// Share of the overlay's small probes that got lost in the last seconds, percent.
    pub loss_percent: Option<f64>,
    /// Mean round-trip time through the overlay within a minute, milliseconds.
    pub round_trip_ms: Option<f64>,
    /// The peer's state.
    pub status: PeerState,
    /// The finding behind it, else the state.
    pub verdict: String,
}

/// How a path looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// Everything lately was answered.
    Up,
    /// Some of it.
    Lossy,
    /// Nothing of it.
    Down,
    /// Nothing was tried.
    Unknown,
}

/// Probes that were answered and lost in some time.
#[derive(Clone, Copy, Debug, Default)]
struct Lately {
    answered: u64,
    lost: u64,
}

impl Lately {
    fn between(earlier: Option<Total>, later: Total) -> Self {
        let earlier = earlier.unwrap_or_default();
        // A loss that turned out to be an answer makes a count smaller.
        Self {
            answered: later.answered.saturating_sub(earlier.answered),
            lost: later.lost.saturating_sub(earlier.lost),
        }
    }

    /// None when nothing was decided.
    fn loss_percent(self) -> Option<f64> {
        let decided = self.answered + self.lost;
        (decided > 0).then(|| 100.0 * self.lost as f64 / decided as f64)
    }
}

impl Path {
    const fn of(lately: Lately) -> Self {
        match (lately.answered, lately.lost) {
            (0, 0) => Self::Unknown,
            (_, 0) => Self::Up,
            (0, _) => Self::Down,
            _ => Self::Lossy,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Lossy => "lossy",
            Self::Down => "down",
            Self::Unknown => "-",
        }
    }
}

/// One report of each node; none of an agent that does not answer.
pub(super) type Reports = Vec<Option<NodeReport>>;

/// Every ordered pair, as the reports give it: `earlier` ones, some seconds
/// old, tell what happened since.
#[must_use]
pub(super) fn pairs(cluster: &Cluster, earlier: &Reports, now: &Reports) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (from, (earlier, now)) in cluster.nodes.iter().zip(earlier.iter().zip(now)) {
        for to in cluster.nodes.iter().filter(|to| to.index != from.index) {
            let address = to.address(cluster.shape);
            pairs.push(Pair {
                from: from.name.clone(),
                to: to.name.clone(),
                ..pair(address, earlier.as_ref(), now.as_ref())
            });
        }
    }
    pairs
}

fn pair(address: IpAddr, earlier: Option<&NodeReport>, now: Option<&NodeReport>) -> Pair {
    let peer = now.and_then(|now| peer_of(now, address));
    // Counters begin anew with each start of the agent.
    let before = earlier
        .filter(|earlier| now.is_some_and(|now| now.epoch == earlier.epoch))
        .and_then(|earlier| peer_of(earlier, address));
    let stream = |wanted: fn(Stream) -> bool| {
        let of = |peer: &PeerReport| peer.streams.iter().find(|s| wanted(s.stream)).cloned();
        let later = peer.and_then(of);
        let earlier = before.and_then(of).map(|stream| stream.total);
        let lately = later.as_ref().map(|later| Lately::between(earlier, later.total));
        (lately.unwrap_or_default(), later.and_then(|later| later.round_trip))
    };
    let (underlay, _) = stream(|stream| stream == Stream::Underlay);
    let (overlay, round_trip) = stream(|stream| matches!(stream, Stream::Small(_)));
    let status = peer.map_or(PeerState::Unknown, |peer| peer.state);
    Pair {
        from: String::new(),
        to: String::new(),
        underlay: Path::of(underlay),
        overlay: Path::of(overlay),
        loss_percent: overlay.loss_percent(),
        round_trip_ms: round_trip.map(|time| time.mean_ns as f64 / 1e6),
        status,
        verdict: match now {
            None => "no answer".to_owned(),
            Some(now) => verdict(now, address).unwrap_or_else(|| status.slug().to_owned()),
        },
    }
}

fn peer_of(report: &NodeReport, address: IpAddr) -> Option<&PeerReport> {
    report.peers.iter().find(|peer| peer.address.0 == address)
}

/// The finding that concerns the pair. What is wrong with a node or its
/// devices is wrong with all its pairs.
fn verdict(report: &NodeReport, address: IpAddr) -> Option<String> {
    let finding = report
        .findings
        .iter()
        .filter(|found| !found.consequence)
        .find(|found| found.finding.subject.peer().is_none_or(|peer| peer.0 == address))?;
    let finding = &finding.finding;
    let mut text = finding.code.slug().to_owned();
    if let Some(direction) = finding.direction {
        text.push(' ');
        text.push_str(direction.slug());
    }
    if let Some(hop) = finding.hop {
        text.push_str(&format!(" {}→{}", hop.from, hop.to));
    }
    Some(text)
}

/// The table, in colour where the output is a terminal.
#[must_use]
pub(super) fn draw(pairs: &[Pair], colour: bool) -> String {
    let mut text = format!(
        "{:18} {:9} {:9} {:>7} {:>9}  {}\n",
        "pair", "underlay", "overlay", "loss", "rtt", "verdict"
    );
    for pair in pairs {
        let name = format!("{} → {}", pair.from, pair.to);
        let loss = pair.loss_percent.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.0} %"));
        let time =
            pair.round_trip_ms.map_or_else(|| "-".to_owned(), |time| format!("{time:.2} ms"));
        let line = format!(
            "{name:18} {:9} {:9} {loss:>7} {time:>9}  {}",
            pair.underlay.text(),
            pair.overlay.text(),
            pair.verdict
        );
        // ECMA-48, SGR: green, yellow, red, grey.
        let shade = match pair.status {
            PeerState::Healthy => 32,
            PeerState::Degraded => 33,
            PeerState::Broken => 31,
            PeerState::Unknown => 90,
        };
        if colour {
            text.push_str(&format!("\x1b[{shade}m{line}\x1b[0m\n"));
        } else {
            text.push_str(&format!("{line}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(answered: u64, lost: u64) -> Total {
        Total { sent: answered + lost, answered, lost, duplicates: 0, reordered: 0 }
    }

    #[test]
    fn only_the_last_seconds_count() {
        let lately = Lately::between(Some(total(100, 0)), total(100, 5));
        assert_eq!(Path::of(lately), Path::Down);
        assert_eq!(lately.loss_percent(), Some(100.0));
        assert_eq!(Path::of(Lately::between(Some(total(100, 5)), total(108, 5))), Path::Up);
        assert_eq!(Path::of(Lately::between(None, total(1, 1))), Path::Lossy);
        assert_eq!(Lately::default().loss_percent(), None);
    }

    #[test]
    fn a_broken_pair_is_drawn_with_its_verdict() {
        let pair = Pair {
            from: "node-1".to_owned(),
            to: "node-2".to_owned(),
            underlay: Path::Up,
            overlay: Path::Down,
            loss_percent: Some(100.0),
            round_trip_ms: None,
            status: PeerState::Broken,
            verdict: "encapsulation-lost both".to_owned(),
        };
        let table = draw(std::slice::from_ref(&pair), false);
        let line = table.lines().nth(1).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            words,
            ["node-1", "→", "node-2", "up", "down", "100", "%", "-", "encapsulation-lost", "both"]
        );
        assert!(draw(&[pair], true).contains("\x1b[31m"));
    }
}
