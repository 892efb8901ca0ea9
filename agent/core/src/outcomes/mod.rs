//! Folds probe events into per-stream outcomes: joins each probe with its
//! reply, or with the peer's window when there is none.

mod hops;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::ladder::Climb;
use crate::model::PeerId;
use crate::pairs::PairView;
use crate::probing::{PeerStatus, ProbeEvent, Stream};
use crate::time::{MILLISECOND, Mono, SECOND};
use hops::{Told, window_of};
use stream::StreamState;

/// A probe unanswered for this long is lost, unless the path is known to be slower.
const TIMEOUT_NS: u64 = 500 * MILLISECOND;
/// The longest timeout, for a path that is known to be slow; half of it for one
/// that is not known at all.
const LONGEST_TIMEOUT_NS: u64 = 2 * SECOND;
/// A wake-up later than this means that the prober was starved.
const STARVED_LAG_NS: u64 = 200 * MILLISECOND;
/// After starvation, outcomes are not counted for this long.
const DISCOUNT_NS: u64 = SECOND;
/// A view without new events is made anew after this long, as its windows slide.
const VIEW_AGE_NS: u64 = 2 * SECOND;
/// The same for a pair in which nothing happened for [`LIVELY_NS`].
const IDLE_AGE_NS: u64 = 15 * SECOND;
/// After this long without an event only the window of a minute still slides.
const LIVELY_NS: u64 = 10 * SECOND;

#[derive(Debug, Default)]
struct PairState {
    /// Boxed, since a map makes room for eleven values at a time.
    streams: BTreeMap<Stream, Box<StreamState>>,
    status: Option<(Mono, PeerStatus)>,
    /// When the request was sent that `status` answers.
    status_asked: Mono,
    last_asked: Option<Mono>,
    view: Arc<PairView>,
    viewed: Mono,
    /// When something last happened.
    touched: Mono,
    dirty: bool,
}

/// The outcomes of all pairs.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    pairs: BTreeMap<PeerId, PairState>,
    /// Pairs in which something is still to be decided; the others are left alone.
    unsettled: BTreeSet<PeerId>,
    /// Pairs that lost something of which the windows may still know.
    losing: BTreeSet<PeerId>,
    /// Until when the prober has told everything that it received.
    horizon: Mono,
    discounted_until: Option<Mono>,
    /// Counts changes of what peers say of themselves, windows left aside.
    statuses: u64,
    /// Worst lag by minute halves: (since, this half, the half before).
    lag: (Mono, u64, u64),
}

impl Outcomes {
    /// Takes one event.
    pub(crate) fn take(&mut self, event: ProbeEvent) {
        match event {
            ProbeEvent::Sent { peer, stream, seq, at } => {
                self.stream(peer, stream).sent(Some(seq), at);
            }
            ProbeEvent::NotSent { peer, stream, at, error } => {
                self.stream(peer, stream).refuse(at, error);
            }
            ProbeEvent::Reply { peer, stream, seq, at, rtt_ns, status } => {
                let asked = self.stream(peer, stream).reply(seq, at, rtt_ns).unwrap_or(at);
                if let (Some(status), Some(pair)) = (status, self.pairs.get_mut(&peer)) {
                    self.statuses += u64::from(pair.heard(at, asked, *status));
                }
            }
            ProbeEvent::Unreachable { peer, stream, at, code, from } => {
                self.stream(peer, stream).unreachable = Some((at, code, from));
            }
            ProbeEvent::Asked { peer, at, streams } => {
                for passage in streams {
                    self.stream(peer, passage.stream).asked(at, &passage);
                }
                let pair = self.pairs.entry(peer).or_default();
                pair.last_asked = pair.last_asked.max(Some(at));
            }
            ProbeEvent::Climbed { peer, at, climbs } => self.climbed(peer, at, climbs),
            ProbeEvent::Observed { at, lag_ns, socket_drops } => {
                self.observed(at, lag_ns, socket_drops);
            }
        }
    }

    /// Declares probes lost whose time is up, and judges settled seconds.
    pub(crate) fn settle(&mut self) {
        let horizon = self.horizon;
        let discounted_until = self.discounted_until;
        let (pairs, losing) = (&mut self.pairs, &mut self.losing);
        self.unsettled.retain(|peer| {
            let Some(pair) = pairs.get_mut(peer) else {
                losing.remove(peer);
                return false;
            };
            let timeout = pair.timeout_ns();
            let told = told(pair.status.as_ref(), pair.status_asked);
            for (&stream, state) in &mut pair.streams {
                pair.dirty |= state.settle(stream, timeout, horizon, discounted_until, told);
            }
            if pair.streams.values().any(|state| state.is_losing()) {
                losing.insert(*peer);
            } else {
                losing.remove(peer);
            }
            !pair.streams.values().all(|state| state.is_settled())
        });
    }

    /// Forgets all pairs but these.
    pub(crate) fn retain(&mut self, keep: impl Fn(PeerId) -> bool) {
        self.pairs.retain(|&peer, _| keep(peer));
        self.losing.retain(|&peer| keep(peer));
    }

    /// What the peer last said of itself.
    pub(crate) fn status(&self, peer: PeerId) -> Option<&(Mono, PeerStatus)> {
        self.pairs.get(&peer)?.status.as_ref()
    }

    /// Changes whenever some peer says something else of itself.
    pub(crate) const fn statuses(&self) -> u64 {
        self.statuses
    }

    /// Until when outcomes are not counted because the prober is unwell.
    pub(crate) fn discounted_until(&self) -> Option<Mono> {
        self.discounted_until.filter(|&until| until > self.horizon)
    }

    /// The longest delay of a wake-up in the last minute.
    pub(crate) fn worst_lag_ns(&self) -> u64 {
        self.lag.1.max(self.lag.2)
    }

    /// All pairs as rules see them. Views of pairs in which nothing happened are shared.
    pub(crate) fn views(&mut self, now: Mono) -> BTreeMap<PeerId, Arc<PairView>> {
        for pair in self.pairs.values_mut() {
            let age = if now.since(pair.touched) < LIVELY_NS { VIEW_AGE_NS } else { IDLE_AGE_NS };
            if pair.dirty || now.since(pair.viewed) >= age {
                pair.view = Arc::new(PairView {
                    streams: pair
                        .streams
                        .iter()
                        .map(|(&stream, state)| (stream, Box::new(state.view(now))))
                        .collect(),
                    status: pair.status.clone(),
                    last_asked: pair.last_asked,
                });
                pair.viewed = now;
                pair.dirty = false;
            }
        }
        self.pairs.iter().map(|(&peer, pair)| (peer, Arc::clone(&pair.view))).collect()
    }

    fn stream(&mut self, peer: PeerId, stream: Stream) -> &mut StreamState {
        self.unsettled.insert(peer);
        let pair = self.pairs.entry(peer).or_default();
        pair.dirty = true;
        pair.touched = self.horizon;
        pair.streams.entry(stream).or_default()
    }

    /// This node's own hops were read.
    fn climbed(&mut self, peer: PeerId, at: Mono, climbs: Vec<(Stream, Climb)>) {
        let Some(pair) = self.pairs.get_mut(&peer) else { return };
        self.unsettled.insert(peer);
        let told = told(pair.status.as_ref(), pair.status_asked);
        for (stream, climb) in climbs {
            if let Some(state) = pair.streams.get_mut(&stream) {
                state.climb = Some(Box::new((at, climb)));
                pair.dirty |= state.place(stream, told);
            }
        }
    }

    /// Peers whose hops are worth reading: something of theirs was lost lately, as
    /// it stood when outcomes were settled.
    pub(crate) const fn losing(&self) -> &BTreeSet<PeerId> {
        &self.losing
    }

    fn observed(&mut self, at: Mono, lag_ns: u64, socket_drops: u32) {
        self.horizon = self.horizon.max(at);
        let (since, now, _) = self.lag;
        self.lag = if at.since(since) > 30 * SECOND {
            (at, lag_ns, now)
        } else {
            (since, now.max(lag_ns), self.lag.2)
        };
        if lag_ns < STARVED_LAG_NS && socket_drops == 0 {
            return;
        }
        // Whatever was on its way while nobody looked may have been lost here.
        let from = at.minus(lag_ns + LONGEST_TIMEOUT_NS);
        self.discounted_until = Some(at.plus(DISCOUNT_NS));
        // A pair that lost something within that time is not settled yet.
        for peer in &self.unsettled {
            let Some(pair) = self.pairs.get_mut(peer) else { continue };
            pair.dirty = true;
            for state in pair.streams.values_mut() {
                state.discount(from, socket_drops > 0);
            }
        }
    }
}

impl PairState {
    /// After which a probe counts as lost: what the slowest of its streams
    /// needed, with room; streams without an answer are taken to be like the others.
    fn timeout_ns(&self) -> u64 {
        let answered = self.streams.values().filter(|stream| stream.last_answer.is_some());
        match answered.map(|stream| stream.last_rtt_ns).max() {
            None => LONGEST_TIMEOUT_NS / 2,
            Some(rtt) => (rtt * 4).clamp(TIMEOUT_NS, LONGEST_TIMEOUT_NS),
        }
    }

    /// Whether the peer says of itself what it did not say before.
    fn heard(&mut self, at: Mono, asked: Mono, status: PeerStatus) -> bool {
        let is_news = self
            .status
            .as_ref()
            .is_none_or(|(_, old)| old.node != status.node || old.tunnels != status.tunnels);
        let restarted = self.status.as_ref().is_some_and(|(_, old)| old.epoch != status.epoch);
        if restarted {
            // What was lost while the peer's agent was away says nothing of the network.
            for state in self.streams.values_mut() {
                state.forgive();
            }
        } else {
            for (stream, state) in &mut self.streams {
                let window = window_of(&status, *stream);
                state.resolve(asked, window);
            }
        }
        if self.status.as_ref().is_none_or(|(old, _)| *old <= at) {
            self.status = Some((at, status));
            self.status_asked = asked;
            let told = told(self.status.as_ref(), asked);
            for (&stream, state) in &mut self.streams {
                state.place(stream, told);
            }
        }
        is_news
    }
}

fn told(status: Option<&(Mono, PeerStatus)>, asked: Mono) -> Option<Told<'_>> {
    status.map(|(heard, status)| Told { heard: *heard, asked, status })
}
