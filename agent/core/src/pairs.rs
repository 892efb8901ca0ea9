//! What probes say of each peer: outcomes joined with the peer's windows and
//! counted by second and direction.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ladder::{Climb, Direction, Segment};
use crate::probing::{PeerStatus, SendError, Stream};
use crate::time::Mono;

/// A run of losses this long is a dead path, not a gray one: it has a verdict of its own.
pub const DEAD_RUN: u32 = 8;
/// Losses of the sparser streams (full-sized, echo) that make a dead path; for
/// echo, beside an underlay stream that is dead already.
pub const SPARSE_DEAD_RUN: u32 = 3;

/// Fates of probes. Undecided ones (still on their way) are in none of the counts but `sent`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Handed to the kernel.
    pub sent: u32,
    /// Answered.
    pub answered: u32,
    /// Lost on the way to the peer: the peer's window misses them.
    pub lost_outbound: u32,
    /// Lost on the way back: the peer's window has them.
    pub lost_inbound: u32,
    /// Lost, and no window of the peer tells where.
    pub lost_undetermined: u32,
}

impl Tally {
    /// All losses. A recording or an answer may say anything, so sums stop at their type's end.
    #[must_use]
    pub const fn lost(&self) -> u32 {
        self.lost_outbound.saturating_add(self.lost_inbound).saturating_add(self.lost_undetermined)
    }

    /// Answered and lost ones.
    #[must_use]
    pub const fn decided(&self) -> u32 {
        self.answered.saturating_add(self.lost())
    }
}

/// Round-trip times of the last minute, nanoseconds, without the responder's dwell time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundTrip {
    /// The shortest.
    pub min_ns: u64,
    /// The mean.
    pub mean_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// The latest.
    pub last_ns: u64,
}

/// One stream as rules, metrics and reports see it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StreamView {
    /// The last five seconds.
    pub recent: Tally,
    /// The unbroken run of losses up to now: what hard verdicts rest on.
    pub run: Run,
    /// The last minute.
    pub minute: Tally,
    /// Since the agent started.
    pub total: Total,
    /// Round-trip times; none without an answer in the last minute.
    pub round_trip: Option<RoundTrip>,
    /// When the latest answered probe was answered.
    pub last_answer: Option<Mono>,
    /// Gray loss on the way out: the sequential test says that seconds with
    /// loss are too many for a healthy path.
    pub gray_outbound: bool,
    /// Gray loss on the way back.
    pub gray_inbound: bool,
    /// Gray loss whose direction nobody can tell.
    pub gray_undetermined: bool,
    /// Some loss is on record, enough for a verdict or not: worth more probes.
    pub suspicious: bool,
    /// Probes of the peer's own stream to this node, sent since the latest that
    /// arrived here, by what its underlay requests say.
    pub unseen_inbound: u32,
    /// Where lost probes vanished, as the hops counted it: those of the run while
    /// there is one, else those of the last minute. The most first.
    #[serde(default)]
    pub places: Vec<Place>,
    /// What passed this node's own hops, as far as it was read since something
    /// was lost.
    #[serde(default)]
    pub climb: Option<Box<Climb>>,
    /// The latest refusal of the local kernel in the recent window, and how many there were.
    pub refused: Option<(SendError, u32)>,
    /// The latest ICMP unreachable in the recent window: code and sender.
    pub unreachable: Option<(u8, IpAddr)>,
}

/// Lost probes that vanished in one direction and segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Which way.
    pub direction: Direction,
    /// Where.
    pub segment: Segment,
    /// How many.
    pub count: u32,
}

/// Losses since the latest answered probe, by time of sending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Lost on the way to the peer.
    pub outbound: u32,
    /// Lost on the way back.
    pub inbound: u32,
    /// Lost, nobody can tell where.
    pub undetermined: u32,
    /// When the first of them was sent.
    pub first: Mono,
    /// When the last of them was sent.
    pub last: Mono,
}

impl Run {
    /// How many.
    #[must_use]
    pub const fn lost(&self) -> u32 {
        self.outbound.saturating_add(self.inbound).saturating_add(self.undetermined)
    }

    /// Nanoseconds between the first and the last.
    #[must_use]
    pub const fn span_ns(&self) -> u64 {
        self.last.since(self.first)
    }
}

impl StreamView {
    /// Whether it lost anything that a verdict could rest on.
    #[must_use]
    pub const fn is_lossy(&self) -> bool {
        self.run.lost() > 0 || self.gray_outbound || self.gray_inbound || self.gray_undetermined
    }

    /// Where most of the losses in one direction vanished, if the hops tell. A
    /// loss between two hops that lie further apart may be one between nearer
    /// ones, so it speaks for them too; of equals the nearest hops win.
    #[must_use]
    pub fn place(&self, direction: Direction) -> Option<Segment> {
        let towards = |one: Direction| {
            let places = || self.places.iter().filter(move |place| place.direction == one);
            let support = |segment: Segment| -> u64 {
                let wider = places().filter(|place| place.segment.contains(segment));
                wider.map(|place| u64::from(place.count)).sum()
            };
            places()
                .map(|place| place.segment)
                .max_by_key(|&segment| (support(segment), std::cmp::Reverse(segment.hops())))
        };
        match direction {
            Direction::Outbound | Direction::Inbound => towards(direction),
            Direction::Both => towards(Direction::Outbound).or(towards(Direction::Inbound)),
        }
    }
}

/// Counters of a stream since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// Handed to the kernel.
    pub sent: u64,
    /// Answered.
    pub answered: u64,
    /// Lost.
    pub lost: u64,
    /// Answered more than once.
    pub duplicates: u64,
    /// Answered after a later one.
    pub reordered: u64,
}

/// One peer as rules, metrics and reports see it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PairView {
    /// Its streams. Boxed, since a map makes room for eleven values at a time, and
    /// a peer has two to four.
    #[serde(with = "crate::record::map_as_pairs")]
    pub streams: BTreeMap<Stream, Box<StreamView>>,
    /// What the peer last said of itself, and when.
    pub status: Option<(Mono, PeerStatus)>,
    /// When a request of the peer last arrived here: its agent lives, and so
    /// does the way from there.
    #[serde(default)]
    pub last_asked: Option<Mono>,
}
