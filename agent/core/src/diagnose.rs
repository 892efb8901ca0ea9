//! From observations to a diagnosis: run the rules, keep the ledger, sum up.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::assembly::SourceId;
use crate::catalog::{Code, Severity};
use crate::delta::Delta;
use crate::fact::{Fact, Gap};
use crate::finding::{Finding, FindingKey};
use crate::ledger::Ledger;
use crate::model::{Link, LinkKind, Owner, Peer, PeerId, table};
use crate::pairs::PairView;
use crate::policy::Policy;
use crate::probing::Stream;
use crate::rules;
use crate::snapshot::Snapshot;
use crate::time::{Mono, SECOND, Wall};

/// The verdict on a node in one word; the RFC draft for health checks
/// (draft-inadarei-api-health-check) names the first three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Every peer was proved reachable and nothing was found.
    Pass,
    /// Something will break, or breaks a little.
    Warn,
    /// Traffic is lost now.
    Fail,
    /// Not enough is known to say so.
    Unknown,
}

impl Status {
    /// The name used in JSON and labels.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Unknown => "unknown",
        }
    }
}

/// The verdict on one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerState {
    /// Reached through every expected encapsulation lately, no loss.
    Healthy,
    /// Reached, with a warning.
    Degraded,
    /// Not reached through an expected encapsulation or at all.
    Broken,
    /// Not proved either way.
    Unknown,
}

impl PeerState {
    /// The name used in JSON and labels.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Broken => "broken",
            Self::Unknown => "unknown",
        }
    }
}

/// A peer and its verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerVerdict {
    /// The peer.
    pub peer: PeerId,
    /// The verdict.
    pub state: PeerState,
}

/// A finding that is in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Active {
    /// The finding, with its latest evidence.
    pub finding: Finding,
    /// Broken since: when it was first seen, not when it was raised.
    pub since: Wall,
    /// The finding whose consequence this is; such a child is shown under its
    /// parent.
    pub parent: Option<FindingKey>,
}

/// Something that could not be seen, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapReport {
    /// Which source.
    pub source: SourceId,
    /// Why.
    pub gap: Gap,
    /// What went wrong and the remedy, for people.
    pub detail: String,
}

/// Everything that is to be said of this node now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// In one word.
    pub status: Status,
    /// Since when it is that word.
    pub since: Wall,
    /// Findings in force: most severe first, then oldest first; children included.
    pub findings: Vec<Active>,
    /// Each peer's verdict, in order of address.
    pub peers: Vec<PeerVerdict>,
    /// What could not be seen.
    pub gaps: Vec<GapReport>,
}

/// How far back the earlier observation of a [`Delta`] lies.
const DELTA_NS: u64 = 5 * SECOND;
/// A peer that answered within this time is known to be reachable: the
/// sparsest pair of the largest mesh is probed more often.
const PROOF_NS: u64 = 120 * SECOND;

/// Turns one observation after the other into diagnoses.
#[derive(Debug, Default)]
pub struct Diagnoser {
    ledger: Ledger,
    memo: rules::Memo,
    /// Observations of the last seconds, without their large collections.
    history: VecDeque<Arc<Snapshot>>,
    status: Option<(Status, Wall)>,
}

impl Diagnoser {
    /// Takes the next observation.
    pub fn evaluate(&mut self, snapshot: &Snapshot, policy: &Policy) -> Diagnosis {
        let now = snapshot.now;
        while self.history.front().is_some_and(|old| now.mono.since(old.now.mono) > DELTA_NS) {
            self.history.pop_front();
        }
        let before = self.history.front().cloned();
        let delta = Delta { before: before.as_deref(), now: snapshot };
        let findings = self.ledger.update(now, rules::run(delta, policy, &mut self.memo));
        self.history.push_back(Arc::new(light(snapshot)));
        let diagnosis = sum_up(snapshot, findings, now.wall);
        let since = match self.status {
            Some((status, since)) if status == diagnosis.status => since,
            _ => now.wall,
        };
        self.status = Some((diagnosis.status, since));
        Diagnosis { since, ..diagnosis }
    }

    /// The earlier observation that the next evaluation compares with, for recordings.
    #[must_use]
    pub fn before(&self) -> Option<&Arc<Snapshot>> {
        self.history.front()
    }
}

/// What a [`Delta`] needs of its earlier observation; the rest may be large.
fn light(snapshot: &Snapshot) -> Snapshot {
    Snapshot {
        routes: Fact::default(),
        rules: Fact::default(),
        neighbours: Fact::default(),
        fdb: Fact::default(),
        kernel: Fact::default(),
        lookups: Fact::default(),
        peers: Arc::default(),
        pairs: std::collections::BTreeMap::new(),
        ..snapshot.clone()
    }
}

/// Judges a recording: as [`Diagnoser`], but at once and without dwell times,
/// since a recording holds one moment.
#[must_use]
pub fn replay(before: Option<&Snapshot>, now: &Snapshot, policy: &Policy) -> Diagnosis {
    let mut ledger = Ledger::default();
    let verdicts = || rules::run(Delta { before, now }, policy, &mut rules::Memo::default());
    let mut findings = Vec::new();
    // The longest dwell time of the catalog, in steps that a live agent would make.
    let longest = crate::catalog::CATALOG.iter().map(|entry| entry.raise_after_ms).max();
    for step in 0..=2 {
        let mut at = now.now;
        at.mono = at.mono.plus(u64::from(longest.unwrap_or(0)) * SECOND / 1_000 * step);
        findings = ledger.update(at, verdicts());
    }
    findings.iter_mut().for_each(|active| active.since = now.now.wall);
    sum_up(now, findings, now.now.wall)
}

fn sum_up(snapshot: &Snapshot, findings: Vec<Active>, since: Wall) -> Diagnosis {
    let peers: Vec<PeerVerdict> = snapshot
        .peers_and_pairs()
        .map(|(peer, pair)| PeerVerdict {
            peer: peer.id,
            state: peer_state(snapshot, peer, pair, &findings),
        })
        .collect();
    let gaps = gaps(snapshot);
    let status = status(snapshot, &findings, &peers);
    Diagnosis { status, since, findings, peers, gaps }
}

fn status(snapshot: &Snapshot, findings: &[Active], peers: &[PeerVerdict]) -> Status {
    // A warning may have a consequence that is worse than itself.
    let worst = findings.iter().map(|active| active.finding.code.entry().severity).max();
    let blind = [
        snapshot.links.gap(),
        snapshot.addresses.gap(),
        snapshot.routes.gap(),
        snapshot.neighbours.gap(),
        snapshot.fdb.gap(),
    ];
    let undecided = peers.is_empty()
        || peers.iter().any(|verdict| verdict.state == PeerState::Unknown)
        || blind.iter().any(Option::is_some);
    match worst {
        Some(Severity::Critical) => Status::Fail,
        Some(Severity::Warning) => Status::Warn,
        _ if undecided => Status::Unknown,
        _ => Status::Pass,
    }
}

fn peer_state(
    snapshot: &Snapshot,
    peer: &Peer,
    pair: Option<&PairView>,
    findings: &[Active],
) -> PeerState {
    let worst = findings
        .iter()
        .filter(|active| active.finding.subject.peer() == Some(peer.id))
        .filter(|active| active.finding.code != Code::AgentSilent)
        .map(|active| active.finding.code.entry().severity)
        .max();
    match worst {
        Some(Severity::Critical) => PeerState::Broken,
        Some(Severity::Warning) => PeerState::Degraded,
        _ if pair.is_some_and(|pair| is_proved(snapshot, peer, pair)) => PeerState::Healthy,
        _ => PeerState::Unknown,
    }
}

/// Whether the peer answered lately through every tunnel that leads to it, or
/// without one where none does, and nothing was lost since. What came through
/// a tunnel came through the underlay too.
fn is_proved(snapshot: &Snapshot, peer: &Peer, pair: &PairView) -> bool {
    let now: Mono = snapshot.now.mono;
    let answers = |stream: Stream| {
        pair.streams.get(&stream).is_some_and(|view| {
            view.run.lost() < 3 && view.last_answer.is_some_and(|at| now.since(at) <= PROOF_NS)
        })
    };
    let has_own_tunnel = snapshot.tunnels.seen().is_some_and(|tunnels| !tunnels.is_empty())
        || unwatched(snapshot).next().is_some();
    let peer_has_tunnel =
        pair.status.as_ref().is_some_and(|(_, status)| !status.tunnels.is_empty());
    // Where one side has a tunnel and nothing leads through it, nothing is proved,
    // unless the kernel leads to the peer's pods through the peer itself on purpose.
    let leads_nowhere = peer.tunnels.is_empty()
        && (has_own_tunnel || peer_has_tunnel)
        && !is_routed_plainly(snapshot, peer);
    let underlay_loses =
        pair.streams.get(&Stream::Underlay).is_some_and(|underlay| underlay.run.lost() >= 3);
    !leads_nowhere
        && !underlay_loses
        && (!peer.tunnels.is_empty() || answers(Stream::Underlay))
        && peer.tunnels.iter().all(|leads| answers(Stream::Small(leads.encapsulation)))
}

/// Whether the way to an overlay address of a peer goes through the peer itself and
/// no tunnel, as host-gw and Calico's CrossSubnet have it.
fn is_routed_plainly(snapshot: &Snapshot, peer: &Peer) -> bool {
    let (Some(routes), Some(tunnels)) = (snapshot.routes.seen(), snapshot.tunnels.seen()) else {
        return false;
    };
    let is_tunnel = |index| tunnels.iter().any(|tunnel| Some(tunnel.index) == index);
    let mut ways = peer.other_addresses.iter().filter_map(|&to| routes.lookup(table::MAIN, to));
    ways.any(|way| way.next_hop.gateway == Some(peer.id.0) && !is_tunnel(way.next_hop.device))
}

/// Tunnels between nodes that nobody looks after here: IP in IPv6, as kube-router has
/// it for IPv6 pods.
fn unwatched(snapshot: &Snapshot) -> impl Iterator<Item = &Link> {
    let links = snapshot.links.seen().into_iter().flat_map(|links| links.values());
    links.filter(|link| {
        let is_in_ipv6 = matches!(&link.kind, LinkKind::Other(kind) if kind == "ip6tnl");
        is_in_ipv6 && link.admin_up && Owner::of_device(&link.name) == Owner::KubeRouter
    })
}

fn gaps(snapshot: &Snapshot) -> Vec<GapReport> {
    let mut gaps: Vec<GapReport> = snapshot
        .sources
        .iter()
        .filter_map(|(&source, state)| {
            Some(GapReport { source, gap: state.gap?, detail: state.detail.clone() })
        })
        .collect();
    let names: Vec<&str> = unwatched(snapshot).map(|link| link.name.as_str()).collect();
    if let [first, ..] = names.as_slice() {
        gaps.push(GapReport {
            source: SourceId::Links,
            gap: Gap::Unsupported,
            detail: format!(
                "IP in IPv6 is not watched: of {} such tunnels ({first}) nothing is said, and pods \
                 that they connect are not proved to reach each other; `ip -6 tunnel show` and \
                 `ip -6 route show` show them",
                names.len()
            ),
        });
    }
    let problems = snapshot.kernel.seen().into_iter().flat_map(|counts| &counts.problems);
    gaps.extend(problems.map(|problem| GapReport {
        source: SourceId::Kernel,
        gap: Gap::Failed,
        detail: problem.clone(),
    }));
    let unread = snapshot.cni.seen().into_iter().flat_map(|cni| &cni.unread);
    gaps.extend(unread.map(|unread| GapReport {
        source: SourceId::Cni,
        gap: if unread.denied { Gap::Denied } else { Gap::Failed },
        detail: unread.detail.clone(),
    }));
    if snapshot.prober.discounted_until.is_some() {
        gaps.push(GapReport {
            source: SourceId::Probe,
            gap: Gap::TimedOut,
            detail: format!(
                "the prober was starved (woken up to {} ms late, or its sockets overflowed): \
                 losses of that time are not counted; give the service more CPU",
                snapshot.prober.worst_lag_ns / crate::time::MILLISECOND
            ),
        });
    }
    gaps
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{IfIndex, LinkCounters};

    /// What is said of a node that has a device of this name and kind.
    fn gaps_of(name: &str, kind: LinkKind, admin_up: bool) -> Vec<String> {
        let link = Link {
            index: IfIndex(7),
            name: name.to_owned(),
            kind,
            mac: None,
            mtu: 1452,
            admin_up,
            carrier: true,
            master: None,
            counters: LinkCounters::default(),
        };
        let links = Arc::new(BTreeMap::from([(link.index, link)]));
        let links = Fact::Seen { value: links, at: Mono(1) };
        let snapshot = Snapshot { links, ..Snapshot::default() };
        gaps(&snapshot).into_iter().map(|gap| gap.detail).collect()
    }

    #[test]
    fn tunnels_that_nobody_looks_after_are_a_gap() {
        let in_ipv6 = || LinkKind::Other("ip6tnl".to_owned());
        let said = gaps_of("tun-0123456789a", in_ipv6(), true);
        assert!(said.len() == 1 && said[0].contains("(tun-0123456789a)"), "{said:?}");
        for (name, kind, up) in [
            ("tun-0123456789a", in_ipv6(), false),
            ("tun-0123456789a", LinkKind::Plain, true),
            // The kernel's own fallback, and what may serve the host alone.
            ("ip6tnl0", in_ipv6(), true),
            ("cilium_ipip6", in_ipv6(), true),
        ] {
            assert_eq!(gaps_of(name, kind, up), [""; 0], "{name}");
        }
    }
}
