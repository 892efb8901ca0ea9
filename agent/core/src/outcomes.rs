//! Folds probe events into per-stream outcomes: joins each probe with its
//! reply, or with the peer's window when there is none.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use crate::ladder::{Climb, Direction, Hop, HopWindows, Recorded, Seen, Segment, Window, segment};
use crate::model::PeerId;
use crate::pairs::{DEAD_RUN, PairView, Place, RoundTrip, Run, StreamView, Tally, Total};
use crate::probing::{Passage, PeerStatus, ProbeEvent, SendError, Stream};
use crate::statistics::Sequential;
use crate::time::{MILLISECOND, Mono, SECOND};

/// How long single probes are remembered: a late reply within it still counts.
const PROBE_MEMORY_NS: u64 = 10 * SECOND;
/// Single probes remembered per stream; the oldest make way.
const PROBES_KEPT: usize = 256;
/// The window of [`StreamView::recent`].
const RECENT_NS: u64 = 5 * SECOND;
/// The window of [`StreamView::minute`], seconds.
const MINUTE_SECONDS: u64 = 60;
/// A second is judged when late replies had this long to come in, seconds.
const SETTLED_AFTER_SECONDS: u64 = 3;
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
/// Hops read this soon after a probe was sent may still miss it.
const UNDER_WAY_NS: u64 = 100 * MILLISECOND;
/// Placed losses remembered beyond [`PROBE_MEMORY_NS`], per stream.
const PLACES_KEPT: usize = 64;
/// After this long without an event only the window of a minute still slides.
const LIVELY_NS: u64 = 10 * SECOND;

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Pending,
    Answered,
    LostOutbound,
    LostInbound,
    LostUndetermined,
    /// Not counted: the prober itself was unwell.
    Discounted,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    /// None for one that the kernel refused.
    seq: Option<u32>,
    at: Mono,
    fate: Fate,
    /// Where it vanished, as the hops tell.
    place: Option<Segment>,
}

/// One second of a stream, by time of sending.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    second: u64,
    tally: Tally,
    rtt_sum_ns: u64,
    rtt_min_ns: u64,
    rtt_max_ns: u64,
    judged: bool,
}

#[derive(Debug, Default)]
struct StreamState {
    probes: VecDeque<Probe>,
    buckets: VecDeque<Bucket>,
    run: Run,
    /// When the latest-sent answered probe was sent.
    answered_until: Mono,
    last_answer: Option<Mono>,
    last_rtt_ns: u64,
    outbound: Sequential,
    inbound: Sequential,
    undetermined: Sequential,
    answered: Window,
    total: Total,
    refused: VecDeque<(Mono, SendError)>,
    unreachable: Option<(Mono, u8, IpAddr)>,
    inbound_tail: Option<InboundTail>,
    /// What passed this node's own hops, and when that was read.
    climb: Option<(Mono, Climb)>,
    /// Losses of the last minute that are no longer among the probes.
    placed: VecDeque<(Mono, Direction, Segment)>,
}

/// The end of the peer's own stream to this node, where nothing arrives.
#[derive(Clone, Copy, Debug)]
struct InboundTail {
    /// When the peer last told what it sent.
    told: Mono,
    /// What it had sent when it first told: older ones prove nothing.
    baseline: u32,
    /// Sent since the latest that arrived.
    unseen: u32,
}

/// What the peer last said.
#[derive(Clone, Copy)]
struct Told<'a> {
    /// When it was heard.
    heard: Mono,
    /// When it was asked: of what was sent before, the peer knew when it answered.
    asked: Mono,
    status: &'a PeerStatus,
}

#[derive(Debug, Default)]
struct PairState {
    streams: BTreeMap<Stream, StreamState>,
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
        let pairs = &mut self.pairs;
        self.unsettled.retain(|peer| {
            let Some(pair) = pairs.get_mut(peer) else { return false };
            let timeout = pair.timeout_ns();
            let told = told(pair.status.as_ref(), pair.status_asked);
            for (&stream, state) in &mut pair.streams {
                pair.dirty |= state.settle(stream, timeout, horizon, discounted_until, told);
            }
            !pair.streams.values().all(StreamState::is_settled)
        });
    }

    /// Forgets all pairs but these.
    pub(crate) fn retain(&mut self, keep: impl Fn(PeerId) -> bool) {
        self.pairs.retain(|&peer, _| keep(peer));
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
                    streams: pair.streams.iter().map(|(&s, state)| (s, state.view(now))).collect(),
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
        let told = told(pair.status.as_ref(), pair.status_asked);
        for (stream, climb) in climbs {
            if let Some(state) = pair.streams.get_mut(&stream) {
                state.climb = Some((at, climb));
                pair.dirty |= state.place(stream, told);
            }
        }
    }

    /// Peers whose hops are worth reading: something of theirs was lost lately.
    pub(crate) fn losing(&self) -> impl Iterator<Item = PeerId> {
        self.pairs
            .iter()
            .filter(|(_, pair)| pair.streams.values().any(StreamState::is_losing))
            .map(|(&peer, _)| peer)
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

fn window_of(status: &PeerStatus, stream: Stream) -> Option<Window> {
    status.windows.iter().find(|(known, _)| *known == stream).map(|(_, window)| *window)
}

fn told(status: Option<&(Mono, PeerStatus)>, asked: Mono) -> Option<Told<'_>> {
    status.map(|(heard, status)| Told { heard: *heard, asked, status })
}

/// How a lost probe was lost, as the window of a peer that was asked at `asked` tells.
fn locate(probe: &Probe, asked: Mono, window: Option<Window>) -> Fate {
    let Some(seq) = probe.seq else { return Fate::LostOutbound };
    if asked < probe.at {
        return Fate::LostUndetermined;
    }
    // A peer that has no window for the stream never received any of it.
    match window.map_or(Seen::No, |window| window.contains(seq)) {
        Seen::Yes => Fate::LostInbound,
        Seen::No => Fate::LostOutbound,
        Seen::TooOld => Fate::LostUndetermined,
    }
}

impl StreamState {
    fn sent(&mut self, seq: Option<u32>, at: Mono) {
        self.total.sent += 1;
        self.probes.push_back(Probe { seq, at, fate: Fate::Pending, place: None });
        if let Some(bucket) = self.bucket(at) {
            bucket.tally.sent += 1;
        }
        while self.probes.len() > PROBES_KEPT {
            self.forget_oldest();
        }
    }

    /// Drops the oldest probe; where it vanished is remembered for longer.
    fn forget_oldest(&mut self) {
        let Some(probe) = self.probes.pop_front() else { return };
        if let (Some(direction), Some(place)) = (lost_towards(probe.fate), probe.place) {
            self.placed.push_back((probe.at, direction, place));
            if self.placed.len() > PLACES_KEPT {
                self.placed.pop_front();
            }
        }
    }

    fn refuse(&mut self, at: Mono, error: SendError) {
        if error == SendError::Busy {
            return;
        }
        self.sent(None, at);
        self.refused.push_back((at, error));
        if let Some(last) = self.probes.len().checked_sub(1) {
            self.set_fate(last, Fate::LostOutbound);
        }
    }

    /// Takes an answer; when its probe was sent, if that is still known.
    fn reply(&mut self, seq: u32, at: Mono, rtt_ns: u64) -> Option<Mono> {
        match self.answered.record(seq) {
            Recorded::Advanced => {}
            Recorded::Reordered => self.total.reordered += 1,
            Recorded::Duplicate => {
                self.total.duplicates += 1;
                return None;
            }
            Recorded::TooOld => return None,
        }
        let position = self.probes.iter().rposition(|probe| probe.seq == Some(seq))?;
        self.set_fate(position, Fate::Answered);
        self.last_answer = self.last_answer.max(Some(at));
        self.last_rtt_ns = rtt_ns;
        let sent_at = self.probes.get(position).map_or(at, |probe| probe.at);
        if let Some(bucket) = self.bucket(sent_at) {
            bucket.rtt_sum_ns = bucket.rtt_sum_ns.saturating_add(rtt_ns);
            bucket.rtt_max_ns = bucket.rtt_max_ns.max(rtt_ns);
            bucket.rtt_min_ns = match bucket.rtt_min_ns {
                0 => rtt_ns,
                known => known.min(rtt_ns),
            };
        }
        Some(sent_at)
    }

    /// The peer tells how far its own stream has got.
    fn asked(&mut self, at: Mono, passage: &Passage) {
        let sent_since = |earlier: u32| passage.sent_highest.wrapping_sub(earlier);
        let is_ahead = |earlier: u32| sent_since(earlier) < 1 << 31;
        let baseline = match self.inbound_tail {
            Some(tail) if is_ahead(tail.baseline) => tail.baseline,
            _ => passage.sent_highest,
        };
        let arrived = passage.received;
        let unseen = if arrived.mask == 0 {
            sent_since(baseline)
        } else if is_ahead(arrived.highest) {
            sent_since(arrived.highest).min(sent_since(baseline))
        } else {
            0
        };
        self.inbound_tail = Some(InboundTail { told: at, baseline, unseen });
    }

    /// A new window of the peer: losses that nobody could place may be placed now.
    fn resolve(&mut self, asked: Mono, window: Option<Window>) {
        for position in 0..self.probes.len() {
            let Some(probe) = self.probes.get(position) else { continue };
            if probe.fate == Fate::LostUndetermined {
                let fate = locate(probe, asked, window);
                self.set_fate(position, fate);
            }
        }
    }

    /// The peer's agent restarted: nothing before counts.
    fn forgive(&mut self) {
        for position in 0..self.probes.len() {
            self.set_fate(position, Fate::Discounted);
        }
        self.run = Run::default();
    }

    /// The prober was unwell since `from`: what was lost then is not counted;
    /// what is on its way may still be answered, unless datagrams were dropped.
    fn discount(&mut self, from: Mono, pending_too: bool) {
        for position in (0..self.probes.len()).rev() {
            let Some(probe) = self.probes.get(position) else { continue };
            if probe.at < from {
                break;
            }
            let lost = !matches!(probe.fate, Fate::Pending | Fate::Answered);
            if probe.seq.is_some() && (lost || (pending_too && probe.fate == Fate::Pending)) {
                self.set_fate(position, Fate::Discounted);
            }
        }
    }

    fn settle(
        &mut self,
        stream: Stream,
        timeout: u64,
        horizon: Mono,
        discounted_until: Option<Mono>,
        told: Option<Told<'_>>,
    ) -> bool {
        let mut changed = false;
        // Probes are in order of sending: pending ones stand near the end.
        let start = self.probes.partition_point(|p| p.at < horizon.minus(PROBE_MEMORY_NS / 2));
        for position in start..self.probes.len() {
            let Some(probe) = self.probes.get(position) else { continue };
            if probe.at.plus(timeout) > horizon {
                break;
            }
            if probe.fate != Fate::Pending {
                continue;
            }
            let fate = match told {
                _ if discounted_until.is_some_and(|until| probe.at < until) => Fate::Discounted,
                Some(told) => locate(probe, told.asked, window_of(told.status, stream)),
                None => Fate::LostUndetermined,
            };
            self.set_fate(position, fate);
            changed = true;
        }
        if changed {
            self.place(stream, told);
        }
        while self.probes.front().is_some_and(|p| horizon.since(p.at) > PROBE_MEMORY_NS) {
            self.forget_oldest();
        }
        let minute = MINUTE_SECONDS * SECOND;
        while self.placed.front().is_some_and(|(at, ..)| horizon.since(*at) > minute) {
            self.placed.pop_front();
        }
        while self.refused.front().is_some_and(|(at, _)| horizon.since(*at) > RECENT_NS) {
            self.refused.pop_front();
            changed = true;
        }
        self.judge(horizon.seconds());
        changed
    }

    /// Places each lost probe between the hops that saw it and those that did
    /// not; whether that changed anything.
    fn place(&mut self, stream: Stream, told: Option<Told<'_>>) -> bool {
        let mut changed = false;
        let hops = Hops { stream, own: self.climb, told };
        for position in 0..self.probes.len() {
            let Some(&probe) = self.probes.get(position) else { continue };
            let Some(seq) = probe.seq else { continue };
            let (fate, place) = match probe.fate {
                Fate::LostOutbound => (probe.fate, hops.outbound(seq, probe.at)),
                Fate::LostInbound => (probe.fate, hops.inbound(seq, probe.at)),
                // The peer says nothing; this node's own hops may.
                Fate::LostUndetermined => match hops.outbound(seq, probe.at) {
                    Some(place) => (Fate::LostOutbound, Some(place)),
                    None if hops.came_back(seq) => (Fate::LostInbound, hops.inbound(seq, probe.at)),
                    None => (probe.fate, None),
                },
                Fate::Pending | Fate::Answered | Fate::Discounted => continue,
            };
            self.set_fate(position, fate);
            // What was placed once stays placed when the windows forget it.
            if let (Some(probe), Some(place)) = (self.probes.get_mut(position), place)
                && probe.place != Some(place)
            {
                probe.place = Some(place);
                changed = true;
            }
        }
        changed
    }

    /// Whether it lost something of which the windows may still know.
    fn is_losing(&self) -> bool {
        self.run.lost() > 0
            || self.probes.iter().rev().any(|probe| lost_towards(probe.fate).is_some())
    }

    /// Lost probes by direction and segment, the most first.
    fn places(&self, now: Mono) -> Vec<Place> {
        let mut places = Vec::<Place>::new();
        let mut add = |direction, segment| {
            let known =
                places.iter_mut().find(|p| (p.direction, p.segment) == (direction, segment));
            match known {
                Some(place) => place.count += 1,
                None => places.push(Place { direction, segment, count: 1 }),
            }
        };
        let since =
            if self.run.lost() > 0 { self.run.first } else { now.minus(MINUTE_SECONDS * SECOND) };
        for &(_, direction, segment) in self.placed.iter().filter(|(at, ..)| *at >= since) {
            add(direction, segment);
        }
        for probe in self.probes.iter().filter(|probe| probe.at >= since) {
            if let (Some(direction), Some(segment)) = (lost_towards(probe.fate), probe.place) {
                add(direction, segment);
            }
        }
        places.sort_by_key(|place| std::cmp::Reverse(place.count));
        places
    }

    /// Whether time alone changes nothing any more but the sliding of windows.
    fn is_settled(&self) -> bool {
        self.refused.is_empty()
            && self.buckets.iter().all(|bucket| bucket.judged)
            && self.probes.iter().all(|probe| probe.fate != Fate::Pending)
    }

    /// Gives settled seconds to the sequential tests and drops old ones.
    fn judge(&mut self, now_second: u64) {
        if self.run.lost() >= DEAD_RUN {
            // Once it is healed, a dead path must not linger as a gray one.
            self.outbound = Sequential::default();
            self.inbound = Sequential::default();
            self.undetermined = Sequential::default();
            self.buckets.iter_mut().for_each(|bucket| bucket.judged = true);
        }
        for bucket in &mut self.buckets {
            if bucket.second + SETTLED_AFTER_SECONDS >= now_second {
                break;
            }
            if !bucket.judged && bucket.tally.decided() > 0 {
                self.outbound.observe(bucket.tally.lost_outbound > 0);
                self.inbound.observe(bucket.tally.lost_inbound > 0);
                self.undetermined.observe(bucket.tally.lost_undetermined > 0);
            }
            bucket.judged = true;
        }
        while self.buckets.front().is_some_and(|b| b.second + MINUTE_SECONDS < now_second) {
            self.buckets.pop_front();
        }
    }

    /// Changes a probe's fate and every count that rests on it.
    fn set_fate(&mut self, position: usize, fate: Fate) {
        let Some(probe) = self.probes.get_mut(position) else { return };
        let old = std::mem::replace(&mut probe.fate, fate);
        let at = probe.at;
        if old == fate {
            return;
        }
        let totals = &mut self.total;
        match old {
            Fate::Answered => totals.answered = totals.answered.saturating_sub(1),
            Fate::LostOutbound | Fate::LostInbound | Fate::LostUndetermined => {
                totals.lost = totals.lost.saturating_sub(1);
            }
            Fate::Pending | Fate::Discounted => {}
        }
        match fate {
            Fate::Answered => totals.answered += 1,
            Fate::LostOutbound | Fate::LostInbound | Fate::LostUndetermined => totals.lost += 1,
            Fate::Pending | Fate::Discounted => {}
        }
        if let Some(bucket) = self.bucket(at) {
            if let Some(count) = count_of(&mut bucket.tally, old) {
                *count = count.saturating_sub(1);
            }
            if let Some(count) = count_of(&mut bucket.tally, fate) {
                *count += 1;
            }
            if fate == Fate::Discounted {
                bucket.tally.sent = bucket.tally.sent.saturating_sub(1);
            }
        }
        self.adjust_run(at, old, fate);
    }

    fn adjust_run(&mut self, at: Mono, old: Fate, fate: Fate) {
        if fate == Fate::Answered {
            self.answered_until = self.answered_until.max(at);
            if at >= self.run.first {
                // The run starts after this probe; all younger ones are remembered.
                self.run = Run::default();
                let younger = self.probes.partition_point(|probe| probe.at <= self.answered_until);
                for probe in self.probes.iter().skip(younger) {
                    grow(&mut self.run, probe.at, probe.fate);
                }
            }
        } else if at > self.answered_until {
            if let Some(count) = run_count(&mut self.run, old) {
                *count = count.saturating_sub(1);
            }
            grow(&mut self.run, at, fate);
        }
    }

    /// The bucket of a moment; none when it is older than all that are kept.
    fn bucket(&mut self, at: Mono) -> Option<&mut Bucket> {
        let second = at.seconds();
        let position = self.buckets.partition_point(|bucket| bucket.second < second);
        let fits = self.buckets.get(position).is_some_and(|bucket| bucket.second == second);
        if !fits {
            if position < self.buckets.len() {
                return None;
            }
            self.buckets.push_back(Bucket { second, ..Bucket::default() });
        }
        self.buckets.get_mut(position)
    }

    fn view(&self, now: Mono) -> StreamView {
        let mut minute = Tally::default();
        let mut rtt = RoundTrip { last_ns: self.last_rtt_ns, ..RoundTrip::default() };
        let mut rtt_sum = 0_u64;
        for bucket in self.buckets.iter().filter(|b| b.second + MINUTE_SECONDS >= now.seconds()) {
            add(&mut minute, &bucket.tally);
            if bucket.rtt_max_ns > 0 {
                rtt_sum = rtt_sum.saturating_add(bucket.rtt_sum_ns);
                rtt.max_ns = rtt.max_ns.max(bucket.rtt_max_ns);
                rtt.min_ns = match rtt.min_ns {
                    0 => bucket.rtt_min_ns,
                    known => known.min(bucket.rtt_min_ns),
                };
            }
        }
        let mut recent = Tally::default();
        for probe in self.probes.iter().rev().take_while(|p| now.since(p.at) <= RECENT_NS) {
            recent.sent += u32::from(probe.fate != Fate::Discounted);
            if let Some(count) = count_of(&mut recent, probe.fate) {
                *count += 1;
            }
        }
        rtt.mean_ns = rtt_sum.checked_div(u64::from(minute.answered)).unwrap_or(0);
        let undecided = |test: &Sequential| test.is_suspicious() && !test.is_raised();
        let refusals = u32::try_from(self.refused.len()).unwrap_or(u32::MAX);
        StreamView {
            recent,
            run: self.run,
            minute,
            total: self.total,
            round_trip: (minute.answered > 0).then_some(rtt),
            last_answer: self.last_answer,
            gray_outbound: self.outbound.is_raised(),
            gray_inbound: self.inbound.is_raised(),
            gray_undetermined: self.undetermined.is_raised(),
            suspicious: recent.lost() > 0
                || undecided(&self.outbound)
                || undecided(&self.inbound)
                || undecided(&self.undetermined),
            unseen_inbound: self
                .inbound_tail
                .filter(|tail| now.since(tail.told) <= RECENT_NS)
                .map_or(0, |tail| tail.unseen),
            places: self.places(now),
            climb: self.climb.map(|(_, climb)| climb),
            refused: self.refused.back().map(|(_, error)| (*error, refusals)),
            unreachable: self
                .unreachable
                .filter(|(at, ..)| now.since(*at) <= RECENT_NS)
                .map(|(_, code, from)| (code, from)),
        }
    }
}

/// The hops of one stream, as both ends counted them.
struct Hops<'a> {
    stream: Stream,
    own: Option<(Mono, Climb)>,
    told: Option<Told<'a>>,
}

impl Hops<'_> {
    /// Where a request vanished.
    fn outbound(&self, seq: u32, sent: Mono) -> Option<Segment> {
        let own = self.own_since(sent).map(|climb| climb.requests).unwrap_or_default();
        let far = self.far_since(sent).map(|climb| climb.requests).unwrap_or_default();
        let told = self.told_since(sent).map(|told| window_of(told.status, self.stream));
        let delivered = told.map(Option::unwrap_or_default);
        segment(seq, &self.order(own, far, delivered))
    }

    /// Where the reply to a request that arrived vanished. The peer answers
    /// what it received, so its windows of replies are as old as its word.
    fn inbound(&self, seq: u32, sent: Mono) -> Option<Segment> {
        let far = self.far_since(sent).map(|climb| climb.replies);
        let own = self.own_since(sent).map(|climb| climb.replies);
        if far.is_none() && own.is_none() {
            return None;
        }
        let (far, own) = (far.unwrap_or_default(), own.unwrap_or_default());
        segment(seq, &self.order(far, own, Some(Window::default())))
    }

    /// Whether the reply reached this node's NIC.
    fn came_back(&self, seq: u32) -> bool {
        let replies = self.own.map(|(_, climb)| climb.replies).unwrap_or_default();
        [replies.reached_nic, replies.decapsulated]
            .into_iter()
            .flatten()
            .any(|window| window.contains(seq) == Seen::Yes)
    }

    fn own_since(&self, sent: Mono) -> Option<Climb> {
        let (read, climb) = self.own?;
        (read >= sent.plus(UNDER_WAY_NS)).then(|| climb.counted(read.since(sent)))
    }

    fn told_since(&self, sent: Mono) -> Option<Told<'_>> {
        self.told.filter(|told| told.asked >= sent)
    }

    fn far_since(&self, sent: Mono) -> Option<Climb> {
        let told = self.told_since(sent)?;
        let (_, climb) = told.status.climbs.iter().find(|(known, _)| *known == self.stream)?;
        Some(climb.counted(told.heard.since(sent)))
    }

    /// The hops after the first, from the sender to the receiver.
    fn order(
        &self,
        sender: HopWindows,
        receiver: HopWindows,
        delivered: Option<Window>,
    ) -> [(Hop, Option<Window>); 5] {
        // Without an encapsulation there is no tunnel device on the way.
        let inside =
            |window: Option<Window>| window.filter(|_| self.stream.encapsulation().is_some());
        [
            (Hop::Encapsulated, inside(sender.encapsulated)),
            (Hop::LeftNic, sender.left_nic),
            (Hop::ReachedNic, receiver.reached_nic),
            (Hop::Decapsulated, inside(receiver.decapsulated)),
            (Hop::Delivered, delivered),
        ]
    }
}

/// Which way a probe was lost, if it was and anybody can tell.
const fn lost_towards(fate: Fate) -> Option<Direction> {
    match fate {
        Fate::LostOutbound => Some(Direction::Outbound),
        Fate::LostInbound => Some(Direction::Inbound),
        Fate::Pending | Fate::Answered | Fate::LostUndetermined | Fate::Discounted => None,
    }
}

fn add(sum: &mut Tally, tally: &Tally) {
    sum.sent += tally.sent;
    sum.answered += tally.answered;
    sum.lost_outbound += tally.lost_outbound;
    sum.lost_inbound += tally.lost_inbound;
    sum.lost_undetermined += tally.lost_undetermined;
}

fn count_of(tally: &mut Tally, fate: Fate) -> Option<&mut u32> {
    match fate {
        Fate::Answered => Some(&mut tally.answered),
        Fate::LostOutbound => Some(&mut tally.lost_outbound),
        Fate::LostInbound => Some(&mut tally.lost_inbound),
        Fate::LostUndetermined => Some(&mut tally.lost_undetermined),
        Fate::Pending | Fate::Discounted => None,
    }
}

fn run_count(run: &mut Run, fate: Fate) -> Option<&mut u32> {
    match fate {
        Fate::LostOutbound => Some(&mut run.outbound),
        Fate::LostInbound => Some(&mut run.inbound),
        Fate::LostUndetermined => Some(&mut run.undetermined),
        Fate::Pending | Fate::Answered | Fate::Discounted => None,
    }
}

fn grow(run: &mut Run, at: Mono, fate: Fate) {
    let first_one = run.lost() == 0;
    if let Some(count) = run_count(run, fate) {
        *count += 1;
        run.first = if first_one { at } else { run.first.min(at) };
        run.last = run.last.max(at);
    }
}
