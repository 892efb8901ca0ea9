//! The one wrapper around every run of a source.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use overlaywatch_core::assembly::{SourceId, SourceReport, Update};
use overlaywatch_core::fact::Gap;
use tokio::sync::mpsc::Sender;

use super::SourceError;
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
    send(updates, switched_off(source))
}

/// What is told of a source that is switched off.
#[must_use]
pub fn switched_off(source: SourceId) -> Update {
    let detail = format!("the source `{}` is switched off in the configuration", source.slug());
    let gap = Some(Gap::Disabled);
    Update::Source(SourceReport { source, gap, detail, duration_ns: 0 })
}

/// Rouses the thread that it is of.
struct Rouse(Thread);

impl Wake for Rouse {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Sleeps, until nobody listens any more at the longest: a thread that looked for
/// that by itself would wake for nothing most of the time.
pub(super) fn pause(pause: Duration, updates: &Sender<Update>) -> Result<(), Closed> {
    let waker = Waker::from(Arc::new(Rouse(thread::current())));
    let mut closed = pin!(updates.closed());
    let end = clock::mono().plus(u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX));
    loop {
        if closed.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            return Err(Closed);
        }
        let left = end.since(clock::mono());
        if left == 0 {
            return Ok(());
        }
        thread::park_timeout(Duration::from_nanos(left));
    }
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
    fn a_pause_lasts_its_time_or_ends_with_whoever_listens() {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        assert_eq!(pause(Duration::from_millis(1), &sender), Ok(()));
        let pausing = thread::spawn(move || pause(Duration::from_secs(3_600), &sender));
        drop(receiver);
        assert_eq!(pausing.join().unwrap(), Err(Closed));
    }

    #[test]
    fn a_closed_channel_ends_the_run() {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        drop(receiver);
        assert_eq!(disabled(&sender, SourceId::Links), Err(Closed));
    }
}
