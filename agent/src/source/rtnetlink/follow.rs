//! Following one subject: subscribe, dump, replay, and dump again whenever
//! events may not have told everything.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

use overlaywatch_core::assembly::{Change, SourceId, Update};
use overlaywatch_core::time::{Mono, SECOND};
use tokio::sync::mpsc::Sender;

use super::dump::dump;
use super::events::{Drained, Events};
use super::feed::{Common, Event, Feed};
use crate::clock;
use crate::source::SourceError;
use crate::source::meter::{Closed, Run, metered, send};
use crate::source::wire::Message;

/// After a dump a source rests for this many times the dump's processor time: no
/// table, however large and restless, costs more than a twentieth of a core.
const REST: u64 = 20;
/// And for this many times before it dumps without a reason: on a node with
/// hundreds of devices their counters are read less often.
const PERIOD: u64 = 250;
/// When to try again what failed, and to look again at what was in doubt: the
/// kernel tells of a device that goes down before it removes its routes
/// (__dev_notify_flags, net/core/dev.c).
const SOON_NS: u64 = SECOND;

/// What every follower is given to work with.
pub(super) struct Context<'a> {
    pub(super) updates: &'a Sender<Update>,
    pub(super) buffer: Box<[u8]>,
    pub(super) common: Common,
    pub(super) event_buffer_bytes: usize,
}

/// A follower of any subject.
pub(super) trait Follow {
    /// Whom it follows.
    fn source(&self) -> SourceId;
    /// When it wants to dump next.
    fn due(&self) -> Mono;
    /// What becomes readable when something changed.
    fn readable(&self) -> Option<BorrowedFd<'_>>;
    /// What was said is no longer certain: dump as soon as its rest is over.
    fn doubt(&mut self);
    /// Reads the events that wait and dumps where that is due.
    fn round(&mut self, context: &mut Context<'_>) -> Result<(), Closed>;
}

/// A follower of one subject.
pub(super) struct Follower<F: Feed> {
    feed: F,
    events: Option<Events>,
    /// The last word on each item since the last round; none is its removal.
    pending: BTreeMap<F::Key, Option<F::Value>>,
    interval_ns: u64,
    due: Mono,
    rested: Mono,
    in_doubt: bool,
}

impl<F: Feed> Follower<F> {
    /// Dumps at once and from then on every `interval_ns`.
    pub(super) fn new(interval_ns: u64) -> Self {
        Self {
            feed: F::default(),
            events: None,
            pending: BTreeMap::new(),
            interval_ns,
            due: Mono::default(),
            rested: Mono::default(),
            in_doubt: false,
        }
    }

    fn drain(&mut self, context: &mut Context<'_>) {
        let Some(events) = &self.events else { return };
        let Context { buffer, common, .. } = context;
        let (feed, pending) = (&mut self.feed, &mut self.pending);
        let drained = events.drain(buffer, |message| take(feed, pending, message, common));
        match drained {
            Ok(Drained::Complete) => {}
            Ok(Drained::Lost) => self.begin_anew("events were lost"),
            Err(error) => self.begin_anew(&error.to_string()),
        }
    }

    /// A new subscription and a fresh dump. The kernel drops all events for
    /// an overrun socket until it was read empty (netlink_overrun and
    /// netlink_rcv_wake, net/netlink/af_netlink.c): a new one hears at once.
    fn begin_anew(&mut self, why: &str) {
        tracing::info!(source = F::SOURCE.slug(), why, "dumping again");
        self.events = None;
        self.doubt();
    }

    fn dump(&mut self, context: &mut Context<'_>) -> Result<Run, Closed> {
        // What was heard or doubted until here is older than what comes.
        self.pending.clear();
        context.common.doubts.remove(&F::SOURCE);
        let Context { updates, buffer, common, event_buffer_bytes } = context;
        metered(updates, F::SOURCE, || {
            if self.events.is_none() {
                self.events = Some(Events::subscribe(F::GROUPS, *event_buffer_bytes)?);
            }
            let mut all = Vec::new();
            for request in F::REQUESTS {
                let part = dump(*request, buffer, F::translate)?;
                if all.is_empty() { all = part } else { all.extend(part) }
            }
            self.feed.dumped(&mut all, common);
            Ok::<_, SourceError>(F::update(Change::Replace(all)))
        })
    }

    fn schedule(&mut self, run: Run) {
        let now = clock::mono();
        let rest_ns = run.cpu_ns.saturating_mul(REST);
        let pause_ns = if run.succeeded && !self.in_doubt {
            self.interval_ns.max(run.cpu_ns.saturating_mul(PERIOD))
        } else {
            self.interval_ns.min(SOON_NS).max(rest_ns)
        };
        self.in_doubt = false;
        self.rested = now.plus(rest_ns);
        self.due = now.plus(pause_ns);
    }
}

/// Notes what one event says.
pub(super) fn take<F: Feed>(
    feed: &mut F,
    pending: &mut BTreeMap<F::Key, Option<F::Value>>,
    message: Message<'_>,
    common: &mut Common,
) {
    let gone = message.kind == F::NEW + 1;
    if message.kind != F::NEW && !gone {
        return feed.overheard(message.kind, common);
    }
    match F::translate(message.payload) {
        Ok(Some(value)) => {
            let event = Event { value: &value, gone, flags: message.flags };
            if feed.heard(event, common) {
                pending.insert(F::key(&value), (!gone).then_some(value));
            }
        }
        Ok(None) => {}
        // The dump will say what is wrong with it, if it is there to stay.
        Err(_) => {
            common.doubts.insert(F::SOURCE);
        }
    }
}

impl<F: Feed> Follow for Follower<F> {
    fn source(&self) -> SourceId {
        F::SOURCE
    }

    fn due(&self) -> Mono {
        self.due
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        self.events.as_ref().map(AsFd::as_fd)
    }

    fn doubt(&mut self) {
        self.in_doubt = true;
        self.due = self.due.min(self.rested);
    }

    fn round(&mut self, context: &mut Context<'_>) -> Result<(), Closed> {
        self.drain(context);
        if self.due <= clock::mono() {
            let run = self.dump(context)?;
            self.schedule(run);
            return Ok(());
        }
        for (key, value) in std::mem::take(&mut self.pending) {
            let change = value.map_or(Change::Remove(key), Change::Upsert);
            send(context.updates, F::update(change))?;
        }
        Ok(())
    }
}
