//! The one wrapper around every run of a source.

use std::thread;
use std::time::Duration;

use overlaywatch_core::assembly::{SourceId, SourceReport, Update};
use overlaywatch_core::fact::Gap;
use tokio::sync::mpsc::Sender;

use super::{ATTENTION, SourceError};
use crate::clock;

/// The receiving end of the updates is gone: the thread has nothing left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// How a run went, for the schedule of the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Whether it gave its facts.
    pub(super) succeeded: bool,
    /// The processor time that it took, nanoseconds: what it costs the node,
    /// however busy the node is otherwise.
    pub(super) cpu_ns: u64,
}

/// Sends an update, waiting for room in the channel.
pub(super) fn send(updates: &Sender<Update>, update: Update) -> Result<(), Closed> {
    updates.blocking_send(update).map_err(|_| Closed)
}

/// Runs a source once: sends what it found and then how it fared.
pub(super) fn metered(
    updates: &Sender<Update>,
    source: SourceId,
    work: impl FnOnce() -> Result<Update, SourceError>,
) -> Result<Run, Closed> {
    let (began, cpu_before) = (clock::mono(), clock::thread_cpu_ns());
    let outcome = work();
    let cpu_ns = clock::thread_cpu_ns().saturating_sub(cpu_before);
    let duration_ns = clock::mono().since(began);
    let succeeded = outcome.is_ok();
    let (gap, detail) = match outcome {
        Ok(update) => {
            send(updates, update)?;
            (None, String::new())
        }
        Err(error) => (Some(error.gap()), error.to_string()),
    };
    send(updates, Update::Source(SourceReport { source, gap, detail, duration_ns }))?;
    Ok(Run { succeeded, cpu_ns })
}

/// Reports once that a source is switched off.
pub(super) fn disabled(updates: &Sender<Update>, source: SourceId) -> Result<(), Closed> {
    let detail = format!("the source `{}` is switched off in the configuration", source.slug());
    let gap = Some(Gap::Disabled);
    send(updates, Update::Source(SourceReport { source, gap, detail, duration_ns: 0 }))
}

/// Sleeps, in slices short enough to notice that nobody listens.
pub(super) fn pause(mut left: Duration, updates: &Sender<Update>) -> Result<(), Closed> {
    while !left.is_zero() {
        if updates.is_closed() {
            return Err(Closed);
        }
        let slice = left.min(ATTENTION);
        thread::sleep(slice);
        left -= slice;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_failure_reports_its_gap_and_sends_no_facts() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
        let refused = || Err(SourceError::io("dumping", io::ErrorKind::PermissionDenied.into()));
        let run = metered(&sender, SourceId::Rules, refused);
        assert!(!run.unwrap().succeeded);
        let Some(Update::Source(report)) = receiver.blocking_recv() else { panic!("no report") };
        assert_eq!(report.source, SourceId::Rules);
        assert_eq!(report.gap, Some(Gap::Failed));
        assert!(report.detail.starts_with("dumping: "), "{}", report.detail);
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn a_success_sends_the_facts_before_the_report() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
        let run = metered(&sender, SourceId::Peers, || Ok(Update::PeersFile(None)));
        assert!(run.unwrap().succeeded);
        assert!(matches!(receiver.blocking_recv(), Some(Update::PeersFile(None))));
        let Some(Update::Source(report)) = receiver.blocking_recv() else { panic!("no report") };
        assert_eq!(report.gap, None);
    }

    #[test]
    fn a_closed_channel_ends_the_run() {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        drop(receiver);
        assert_eq!(disabled(&sender, SourceId::Links), Err(Closed));
    }
}
