//! What the assembly loop publishes at each tick and everything that answers
//! requests reads: one immutable value behind a watch channel.

use std::sync::Arc;

use overlaywatch_core::diagnose::Diagnosis;
use overlaywatch_core::snapshot::Snapshot;

/// The latest observation and what was made of it.
#[derive(Clone, Debug)]
pub struct Published {
    /// Counts ticks since start, from 1.
    pub tick: u64,
    /// The observation.
    pub snapshot: Arc<Snapshot>,
    /// An observation a few seconds earlier, for recordings; none right after the start.
    pub before: Option<Arc<Snapshot>>,
    /// The diagnosis.
    pub diagnosis: Arc<Diagnosis>,
}

/// How readers get it: none until the first tick.
pub type Publication = tokio::sync::watch::Receiver<Option<Arc<Published>>>;
