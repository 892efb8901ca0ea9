//! A finding: one verdict on one subject, as enums and numbers. Text is made
//! at the edge, through the `Display` of its parts.

mod cni;
mod evidence;
mod ipset;
mod netfilter;
mod program;

use serde::{Deserialize, Serialize};

pub use self::cni::CniEvidence;
pub use self::evidence::Evidence;
pub use self::ipset::SetEvidence;
pub use self::netfilter::Filtered;
use crate::catalog::Code;
pub use crate::ladder::Direction;
use crate::ladder::Segment;
use crate::model::{Encapsulation, PeerId};

/// What a finding is about. Together with the code it identifies the finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Subject {
    /// This node as a whole.
    Node,
    /// One of its devices.
    Device {
        /// The device's name.
        name: String,
    },
    /// Something else that this node has.
    Thing {
        /// What it is.
        what: Thing,
        /// Its name, as the tool prints it that an administrator would use.
        name: String,
    },
    /// This node and one peer.
    Pair {
        /// The peer.
        peer: PeerId,
        /// The encapsulation concerned; none for the underlay.
        encapsulation: Option<Encapsulation>,
    },
}

impl Subject {
    /// The peer concerned, if one is.
    #[must_use]
    pub const fn peer(&self) -> Option<PeerId> {
        match self {
            Self::Pair { peer, .. } => Some(*peer),
            Self::Node | Self::Device { .. } | Self::Thing { .. } => None,
        }
    }
}

/// Something on a node that a finding can be about, beside its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Thing {
    /// A netfilter table: "ip filter".
    Table,
    /// A netfilter chain: "ip filter FORWARD".
    Chain,
    /// An ipset.
    Set,
    /// A program that somebody else attached to a device.
    Program,
    /// A route's destination.
    Route,
    /// A routing session with another node.
    Session,
    /// A service on this node, by its name.
    Service,
    /// A file.
    File,
    /// What another network plugin left behind, by the plugin's name.
    Leftover,
    /// A switch of the kernel, as sysctl(8) prints it.
    Sysctl,
    /// A module of the kernel.
    Module,
}

impl Thing {
    /// The word used in JSON and by people.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Chain => "chain",
            Self::Set => "set",
            Self::Program => "program",
            Self::Route => "route",
            Self::Session => "session",
            Self::Service => "service",
            Self::File => "file",
            Self::Leftover => "leftover",
            Self::Sysctl => "sysctl",
            Self::Module => "module",
        }
    }
}

/// How sure a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// The evidence fits, other causes fit too.
    Low,
    /// Probes counted it over enough tries.
    High,
    /// The kernel's own state says so.
    Certain,
}

impl Confidence {
    /// The name used in JSON.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::High => "high",
            Self::Certain => "certain",
        }
    }
}

/// One verdict on one subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What.
    pub code: Code,
    /// About what.
    pub subject: Subject,
    /// Which way packets are lost; none where it is no question.
    pub direction: Option<Direction>,
    /// Where they vanish, in that direction.
    pub hop: Option<Segment>,
    /// What it rests on.
    pub evidence: Vec<Evidence>,
    /// How sure it is.
    pub confidence: Confidence,
}

/// What identifies a finding over time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FindingKey {
    /// What.
    pub code: Code,
    /// About what.
    pub subject: Subject,
}

impl Finding {
    /// Its identity.
    #[must_use]
    pub fn key(&self) -> FindingKey {
        FindingKey { code: self.code, subject: self.subject.clone() }
    }
}
