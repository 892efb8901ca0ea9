//! What is expected of this node, and the limits to judge by: the part of the
//! configuration that the core needs.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::catalog::Code;
use crate::model::PeerListEntry;

/// Expectations and limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Peers named in the configuration; they rank above the peers file.
    pub peers: Vec<PeerListEntry>,
    /// Seconds for which a peer that the kernel no longer knows is remembered.
    pub forget_departed_seconds: u32,
    /// Probes per second in the steady state; confirmation bursts come on top.
    pub probes_per_second: u16,
    /// Only what is counted is said, without the rules that name causes: to see
    /// that hops are counted and not inferred.
    pub counted_only: bool,
    /// Codes that the operator does not want to hear of.
    pub silenced: BTreeSet<Code>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            peers: Vec::new(),
            forget_departed_seconds: 600,
            probes_per_second: 64,
            counted_only: false,
            silenced: BTreeSet::new(),
        }
    }
}
