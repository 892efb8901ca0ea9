//! NodeReport v1: what an agent tells an aggregator and its peers' operators.
//! The wire contract of `/v1/report`: extend it, never change what is there.

use serde::{Deserialize, Serialize};

use crate::catalog::Severity;
use crate::diagnose::{Diagnosis, GapReport, PeerState, Status};
use crate::finding::Finding;
use crate::kernel::KernelCounts;
use crate::ladder::{Climb, Window};
use crate::model::{NodeName, Origin, Peer, PeerId, Tunnel};
use crate::pairs::{Place, RoundTrip, Run, Tally, Total};
use crate::probing::Stream;
use crate::snapshot::Snapshot;
use crate::time::Wall;

/// The version of this contract.
pub const VERSION: u32 = 1;

/// Everything that one node says about itself and its peers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// [`VERSION`].
    pub version: u32,
    /// This node's name.
    pub node: Option<NodeName>,
    /// Changes with each start of the agent: counters begin anew.
    pub epoch: u64,
    /// Identifies the boot.
    pub boot_id: Option<String>,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// The agent's version.
    pub agent: String,
    /// When, in milliseconds since the Unix epoch, by this node's clock.
    pub at: Wall,
    /// The node's verdict.
    pub status: Status,
    /// Since when.
    pub since: Wall,
    /// Findings in force.
    pub findings: Vec<ReportedFinding>,
    /// Its tunnels.
    pub tunnels: Vec<Tunnel>,
    /// Its peers.
    pub peers: Vec<PeerReport>,
    /// What its kernel counted: drops, ICMP errors, traffic by peer.
    #[serde(default)]
    pub kernel_counts: Option<KernelCounts>,
    /// What it could not see.
    pub gaps: Vec<GapReport>,
}

/// A finding in a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportedFinding {
    /// The finding.
    #[serde(flatten)]
    pub finding: Finding,
    /// How bad it is.
    pub severity: Severity,
    /// Broken since.
    pub since: Wall,
    /// It is a consequence of another finding in this report.
    pub consequence: bool,
}

/// A peer in a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Its underlay address.
    pub address: PeerId,
    /// Its name.
    pub name: Option<NodeName>,
    /// Who says that it exists.
    pub origin: Origin,
    /// The verdict.
    pub state: PeerState,
    /// What probes say, by stream.
    pub streams: Vec<StreamReport>,
}

/// A stream in a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamReport {
    /// The stream.
    pub stream: Stream,
    /// The unbroken run of losses up to now.
    #[serde(default)]
    pub run: Run,
    /// The last minute.
    pub minute: Tally,
    /// Since the agent started.
    pub total: Total,
    /// Round-trip times of the last minute.
    pub round_trip: Option<RoundTrip>,
    /// The peer's half of the ladder: which of this node's probes it received.
    pub delivered: Option<Window>,
    /// What passed the peer's hops, where something is lost and the peer counts.
    #[serde(default)]
    pub peer_climb: Option<Climb>,
    /// What passed this node's own hops, where something is lost.
    #[serde(default)]
    pub climb: Option<Climb>,
    /// Where lost probes vanished, the most first.
    #[serde(default)]
    pub places: Vec<Place>,
}

impl NodeReport {
    /// The report on `snapshot` and what was made of it.
    #[must_use]
    pub fn new(snapshot: &Snapshot, diagnosis: &Diagnosis) -> Self {
        let host = snapshot.host.seen();
        Self {
            version: VERSION,
            node: snapshot.node.name.clone(),
            epoch: snapshot.node.epoch,
            boot_id: host.map(|host| host.boot_id.clone()),
            kernel: host.map(|host| host.kernel_release.clone()),
            agent: snapshot.node.version.clone(),
            at: snapshot.now.wall,
            status: diagnosis.status,
            since: diagnosis.since,
            findings: diagnosis
                .findings
                .iter()
                .map(|active| ReportedFinding {
                    finding: active.finding.clone(),
                    severity: active.finding.code.entry().severity,
                    since: active.since,
                    consequence: active.parent.is_some(),
                })
                .collect(),
            tunnels: snapshot.tunnels.seen().map(|t| t.to_vec()).unwrap_or_default(),
            peers: snapshot
                .peers
                .iter()
                .map(|peer| peer_report(snapshot, diagnosis, peer))
                .collect(),
            kernel_counts: snapshot.kernel.seen().map(|counts| KernelCounts::clone(counts)),
            gaps: diagnosis.gaps.clone(),
        }
    }
}

fn peer_report(snapshot: &Snapshot, diagnosis: &Diagnosis, peer: &Peer) -> PeerReport {
    let pair = snapshot.pairs.get(&peer.id);
    // Verdicts are in order of address.
    let verdict = diagnosis
        .peers
        .binary_search_by_key(&peer.id, |verdict| verdict.peer)
        .ok()
        .and_then(|position| diagnosis.peers.get(position));
    let delivered = |stream: Stream| {
        let (_, status) = pair?.status.as_ref()?;
        status.windows.iter().find(|(known, _)| *known == stream).map(|(_, window)| *window)
    };
    let peer_climb = |stream: Stream| {
        let (_, status) = pair?.status.as_ref()?;
        status.climbs.iter().find(|(known, _)| *known == stream).map(|(_, climb)| *climb)
    };
    PeerReport {
        address: peer.id,
        name: peer.name.clone(),
        origin: peer.origin,
        state: verdict.map_or(PeerState::Unknown, |verdict| verdict.state),
        streams: pair
            .into_iter()
            .flat_map(|pair| &pair.streams)
            .map(|(&stream, view)| StreamReport {
                stream,
                run: view.run,
                minute: view.minute,
                total: view.total,
                round_trip: view.round_trip,
                delivered: delivered(stream),
                peer_climb: peer_climb(stream),
                climb: view.climb.as_deref().copied(),
                places: view.places.clone(),
            })
            .collect(),
    }
}
