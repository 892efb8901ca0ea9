//! The contract of `/health`, and how a diagnosis becomes it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use overlaywatch_core::catalog::Severity;
use overlaywatch_core::diagnose::{Active, Diagnosis, GapReport, PeerState, Status};
use overlaywatch_core::finding::{Confidence, Direction, Evidence, Finding, FindingKey, Subject};
use overlaywatch_core::ladder::Segment;
use overlaywatch_core::model::Encapsulation;
use overlaywatch_core::snapshot::Snapshot;
use overlaywatch_core::time::Wall;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::words;

/// Findings that one answer lists: a node that lost a thousand peers has one
/// thing to say, not a megabyte.
const LISTED: usize = 200;

/// What `/health` answers. Read back by `overlaywatch status`, maybe of
/// another version, so codes and evidence are open here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// The verdict in one word.
    pub status: Status,
    /// This node's name; none while it is not known.
    pub node: Option<String>,
    /// The verdict as a sentence.
    pub summary: String,
    /// Since when the status is what it is (RFC 3339); none before the first observation.
    pub since: Option<String>,
    /// When the observation was made (RFC 3339).
    pub at: Option<String>,
    /// Causes, each with its consequences: most severe first, then oldest first.
    pub findings: Vec<FindingView>,
    /// Findings in force that are not listed, because there are so many.
    /// `/v1/report` has all of them.
    #[serde(default)]
    pub omitted: usize,
    /// Peers by verdict.
    pub peers: PeerCounts,
    /// What could not be seen, why, and what to do.
    pub gaps: Vec<GapReport>,
}

/// One finding in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FindingView {
    /// The same for as long as the finding lasts, and the same after a restart.
    pub id: String,
    /// What it is; `overlaywatch explain CODE` says more.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub subject: SubjectView,
    /// The last hop that packets were seen at, and the first that missed them.
    pub hop: Option<Segment>,
    /// A few words.
    pub title: String,
    /// What it rests on.
    pub evidence: Vec<EvidenceView>,
    /// How sure it is.
    pub confidence: Confidence,
    /// What to do.
    pub remedy: String,
    /// Broken since (RFC 3339).
    pub since: String,
    /// Findings that this one explains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consequences: Vec<FindingView>,
}

/// What a finding is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SubjectView {
    /// `node`, `device`, `pair`, or what else it is: `table`, `set`, `file` and so on.
    pub kind: String,
    /// The name of something that is neither node nor device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The node concerned: of a pair the peer, else this one.
    pub node: Option<String>,
    /// Its underlay address.
    pub address: Option<IpAddr>,
    /// The device concerned: of a pair the tunnel that leads there.
    pub device: Option<String>,
    /// The encapsulation; none for the underlay.
    pub encapsulation: Option<Encapsulation>,
    /// Which way packets are lost, seen from this node.
    pub direction: Option<Direction>,
}

/// One piece of evidence: a sentence for people, and its numbers for programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvidenceView {
    /// The sentence.
    pub text: String,
    /// The kind and its numbers.
    #[serde(flatten)]
    pub machine: Map<String, Value>,
}

/// How many peers have which verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerCounts {
    /// All that are known.
    pub expected: usize,
    /// Reached through every expected encapsulation.
    pub healthy: usize,
    /// Reached, with a warning.
    pub degraded: usize,
    /// Not reached through an expected encapsulation, or at all.
    pub broken: usize,
    /// Not proved either way.
    pub unknown: usize,
}

impl PeerCounts {
    /// Of a diagnosis.
    #[must_use]
    pub fn of(diagnosis: &Diagnosis) -> Self {
        let mut counts = Self { expected: diagnosis.peers.len(), ..Self::default() };
        for verdict in &diagnosis.peers {
            *match verdict.state {
                PeerState::Healthy => &mut counts.healthy,
                PeerState::Degraded => &mut counts.degraded,
                PeerState::Broken => &mut counts.broken,
                PeerState::Unknown => &mut counts.unknown,
            } += 1;
        }
        counts
    }
}

impl Health {
    /// What is said before the first observation.
    #[must_use]
    pub fn starting() -> Self {
        Self {
            status: Status::Unknown,
            node: None,
            summary: "the agent is starting: nothing was observed yet".to_owned(),
            since: None,
            at: None,
            findings: Vec::new(),
            omitted: 0,
            peers: PeerCounts::default(),
            gaps: Vec::new(),
        }
    }

    /// What is said of an observation and its diagnosis.
    #[must_use]
    pub fn new(snapshot: &Snapshot, diagnosis: &Diagnosis) -> Self {
        let family = Family::of(&diagnosis.findings);
        let listed = family.causes.len().min(LISTED);
        // Causes first; consequences as far as there is room.
        let room = Cell::new(LISTED - listed);
        let findings =
            family.causes.iter().take(listed).map(|cause| family.view(snapshot, cause, &room));
        let findings: Vec<FindingView> = findings.collect();
        let shown = LISTED - room.get();
        Self {
            status: diagnosis.status,
            node: snapshot.node.name.as_ref().map(ToString::to_string),
            summary: words::summary(snapshot, diagnosis, &family.causes),
            since: Some(timestamp(diagnosis.since)),
            at: Some(timestamp(snapshot.now.wall)),
            findings,
            omitted: diagnosis.findings.len() - shown,
            peers: PeerCounts::of(diagnosis),
            gaps: diagnosis.gaps.clone(),
        }
    }
}

/// Findings as trees: causes, and below each what it explains.
pub(super) struct Family<'a> {
    pub(super) causes: Vec<&'a Active>,
    children: BTreeMap<&'a FindingKey, Vec<&'a Active>>,
}

impl<'a> Family<'a> {
    pub(super) fn of(findings: &'a [Active]) -> Self {
        let keys: BTreeSet<FindingKey> =
            findings.iter().map(|active| active.finding.key()).collect();
        let mut family = Self { causes: Vec::new(), children: BTreeMap::new() };
        for active in findings {
            // A cause that is not itself in force yet cannot be shown above its consequence.
            match active.parent.as_ref().filter(|parent| keys.contains(parent)) {
                Some(parent) => family.children.entry(parent).or_default().push(active),
                None => family.causes.push(active),
            }
        }
        family
    }

    fn view(&self, snapshot: &Snapshot, active: &Active, room: &Cell<usize>) -> FindingView {
        let finding = &active.finding;
        let entry = finding.code.entry();
        let children = self.children.get(&finding.key()).map_or(&[][..], Vec::as_slice);
        FindingView {
            id: id(snapshot, finding),
            code: entry.slug.to_owned(),
            severity: entry.severity,
            subject: subject(snapshot, finding),
            hop: finding.hop,
            title: entry.title.to_owned(),
            evidence: finding.evidence.iter().map(evidence).collect(),
            confidence: finding.confidence,
            remedy: words::remedy(snapshot, finding),
            since: timestamp(active.since),
            // The catalog's parents form no circle, so this ends.
            consequences: children
                .iter()
                .map_while(|child| {
                    room.set(room.get().checked_sub(1)?);
                    Some(self.view(snapshot, child, room))
                })
                .collect(),
        }
    }
}

/// Code, node and subject, by what does not change: a peer's name may be
/// learnt later than its address.
fn id(snapshot: &Snapshot, finding: &Finding) -> String {
    let code = finding.code.slug();
    let node = words::node(snapshot).replace(' ', "-");
    match &finding.subject {
        Subject::Node => format!("{code}:{node}"),
        Subject::Device { name } | Subject::Thing { name, .. } => {
            format!("{code}:{node}:{}", name.replace(' ', "-"))
        }
        Subject::Pair { peer, encapsulation: None } => format!("{code}:{node}:{peer}"),
        Subject::Pair { peer, encapsulation: Some(wrap) } => {
            format!("{code}:{node}:{peer}:{wrap}")
        }
    }
}

fn subject(snapshot: &Snapshot, finding: &Finding) -> SubjectView {
    let here = SubjectView {
        kind: "node".to_owned(),
        name: None,
        node: snapshot.node.name.as_ref().map(ToString::to_string),
        address: snapshot.node.underlay,
        device: None,
        encapsulation: None,
        direction: finding.direction,
    };
    match &finding.subject {
        Subject::Node => here,
        Subject::Device { name } => {
            let tunnels = snapshot.tunnels.seen().map_or(&[][..], |tunnels| tunnels.as_slice());
            let tunnel = tunnels.iter().find(|tunnel| tunnel.name == *name);
            SubjectView {
                kind: "device".to_owned(),
                device: Some(name.clone()),
                encapsulation: tunnel.map(|tunnel| tunnel.encapsulation),
                ..here
            }
        }
        Subject::Thing { what, name } => {
            SubjectView { kind: what.slug().to_owned(), name: Some(name.clone()), ..here }
        }
        Subject::Pair { peer, encapsulation } => SubjectView {
            kind: "pair".to_owned(),
            node: Some(words::peer(snapshot, *peer)),
            address: Some(peer.0),
            device: encapsulation.and_then(|_| words::tunnel_name(snapshot, *peer, *encapsulation)),
            encapsulation: *encapsulation,
            ..here
        },
    }
}

fn evidence(evidence: &Evidence) -> EvidenceView {
    let machine = match serde_json::to_value(evidence) {
        Ok(Value::Object(map)) => map,
        // Evidence is an enum of structs with a tag: always an object.
        _ => Map::new(),
    };
    EvidenceView { text: evidence.to_string(), machine }
}

/// A point in time as RFC 3339 writes it, in UTC, with milliseconds.
#[must_use]
pub fn timestamp(at: Wall) -> String {
    i64::try_from(at.0)
        .ok()
        .and_then(|milliseconds| Timestamp::from_millisecond(milliseconds).ok())
        .map_or_else(|| "unknown".to_owned(), |timestamp| format!("{timestamp:.3}"))
}
