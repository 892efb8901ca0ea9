//! One stream's probes: what became of each, by second and direction.

use std::collections::VecDeque;
use std::net::IpAddr;

use super::hops::{Hops, Told, window_of};
use crate::ladder::{Climb, Direction, Recorded, Seen, Segment, Window};
use crate::pairs::{DEAD_RUN, Place, RoundTrip, Run, SPARSE_DEAD_RUN, StreamView, Tally, Total};
use crate::probing::{Passage, SendError, Stream};
use crate::statistics::Sequential;
use crate::time::{Mono, SECOND};

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
/// Placed losses remembered beyond [`PROBE_MEMORY_NS`], per stream.
const PLACES_KEPT: usize = 64;

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

/// What is known of one stream to one peer.
#[derive(Debug, Default)]
pub(super) struct StreamState {
    probes: VecDeque<Probe>,
    buckets: VecDeque<Bucket>,
    run: Run,
    /// When the latest-sent answered probe was sent.
    answered_until: Mono,
    pub(super) last_answer: Option<Mono>,
    pub(super) last_rtt_ns: u64,
    outbound: Sequential,
    inbound: Sequential,
    undetermined: Sequential,
    answered: Window,
    total: Total,
    refused: VecDeque<(Mono, SendError)>,
    pub(super) unreachable: Option<(Mono, u8, IpAddr)>,
    inbound_tail: Option<InboundTail>,
    /// What passed this node's own hops, and when that was read.
    pub(super) climb: Option<Box<(Mono, Climb)>>,
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
    pub(super) fn sent(&mut self, seq: Option<u32>, at: Mono) {
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

    pub(super) fn refuse(&mut self, at: Mono, error: SendError) {
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
    pub(super) fn reply(&mut self, seq: u32, at: Mono, rtt_ns: u64) -> Option<Mono> {
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
    pub(super) fn asked(&mut self, at: Mono, passage: &Passage) {
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
    pub(super) fn resolve(&mut self, asked: Mono, window: Option<Window>) {
        for position in 0..self.probes.len() {
            let Some(probe) = self.probes.get(position) else { continue };
            if probe.fate == Fate::LostUndetermined {
                let fate = locate(probe, asked, window);
                self.set_fate(position, fate);
            }
        }
    }

    /// The peer's agent restarted: nothing before counts.
    pub(super) fn forgive(&mut self) {
        for position in 0..self.probes.len() {
            self.set_fate(position, Fate::Discounted);
        }
        self.run = Run::default();
    }

    /// The prober was unwell since `from`: what was lost then is not counted;
    /// what is on its way may still be answered, unless datagrams were dropped.
    pub(super) fn discount(&mut self, from: Mono, pending_too: bool) {
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

    pub(super) fn settle(
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
    pub(super) fn place(&mut self, stream: Stream, told: Option<Told<'_>>) -> bool {
        let mut changed = false;
        let hops = Hops { stream, own: self.climb.as_deref().copied(), told };
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
    pub(super) fn is_losing(&self) -> bool {
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
        // A loss now and then is placed by all of the last minute's: the latest one
        // alone is placed widely until its hops are read.
        let since = if self.run.lost() >= SPARSE_DEAD_RUN {
            self.run.first
        } else {
            now.minus(MINUTE_SECONDS * SECOND)
        };
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
    pub(super) fn is_settled(&self) -> bool {
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

    pub(super) fn view(&self, now: Mono) -> StreamView {
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
                || self.outbound.is_suspicious()
                || self.inbound.is_suspicious()
                || self.undetermined.is_suspicious(),
            unseen_inbound: self
                .inbound_tail
                .filter(|tail| now.since(tail.told) <= RECENT_NS)
                .map_or(0, |tail| tail.unseen),
            places: self.places(now),
            climb: self.climb.as_ref().map(|known| Box::new(known.1)),
            refused: self.refused.back().map(|(_, error)| (*error, refusals)),
            unreachable: self
                .unreachable
                .filter(|(at, ..)| now.since(*at) <= RECENT_NS)
                .map(|(_, code, from)| (code, from)),
        }
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
