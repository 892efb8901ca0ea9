//! From observations to a diagnosis: run the rules, keep the ledger, sum up.

use serde::{Deserialize, Serialize};

use crate::assembly::SourceId;
use crate::fact::Gap;
use crate::finding::{Finding, FindingKey};
use crate::model::PeerId;
use crate::time::Wall;

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
    /// parent and counts for no status.
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
