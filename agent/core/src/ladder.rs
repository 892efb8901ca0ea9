//! The ladder of hops, and windows of sequence numbers that are joined over it.
//!
//! Each end counts the probes it saw in a [`Window`]; the first hop where a
//! sequence number is missing names the segment that swallowed it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::MILLISECOND;

/// The hops that a probe climbs in one direction, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hop {
    /// Handed to the sender's socket.
    Sent,
    /// Left the sender's tunnel device: routed, resolved, encapsulated.
    Encapsulated,
    /// Left the sender's underlay NIC.
    LeftNic,
    /// Reached the receiver's underlay NIC.
    ReachedNic,
    /// Came out of the receiver's tunnel device.
    Decapsulated,
    /// Delivered to the receiver's socket.
    Delivered,
}

impl Hop {
    /// The name used in JSON, labels and text.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Encapsulated => "encapsulated",
            Self::LeftNic => "left-nic",
            Self::ReachedNic => "reached-nic",
            Self::Decapsulated => "decapsulated",
            Self::Delivered => "delivered",
        }
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.slug())
    }
}

/// Which way packets are lost between this node and the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From this node to the peer.
    Outbound,
    /// From the peer to this node.
    Inbound,
    /// Both ways.
    Both,
}

impl Direction {
    /// The name used in JSON and labels.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Both => "both",
        }
    }
}

/// Where packets vanish: they were seen at `from` and not at `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Segment {
    /// The last hop where they were seen.
    pub from: Hop,
    /// The first hop where they were missing.
    pub to: Hop,
}

impl Segment {
    /// Whether all of the other lies within this one.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.from <= other.from && other.to <= self.to
    }

    /// How many hops further its end is than its beginning.
    #[must_use]
    pub const fn hops(self) -> u8 {
        (self.to as u8).saturating_sub(self.from as u8)
    }

    /// Whether the two have a stretch of the ladder in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.from < other.to && other.from < self.to
    }
}

/// Which probes of one stream, and of one kind, passed the hops of one node;
/// none where the hop is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopWindows {
    /// Its tunnel device, egress.
    pub encapsulated: Option<Window>,
    /// Its underlay NIC, egress.
    pub left_nic: Option<Window>,
    /// Its underlay NIC, ingress.
    pub reached_nic: Option<Window>,
    /// Its tunnel device, ingress.
    pub decapsulated: Option<Window>,
}

/// One stream at the hops of one node, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Climb {
    /// Requests: on their way out at the node that asks, on their way in at
    /// the node that answers.
    pub requests: HopWindows,
    /// Replies, the other way round.
    pub replies: HopWindows,
    /// For how long the NIC's hops have been counted, milliseconds.
    pub nic_ms: u32,
    /// For how long the tunnel device's hops have been counted, milliseconds.
    pub tunnel_ms: u32,
}

impl Climb {
    /// Only the hops that were counted already when a packet passed, `ago_ns`
    /// before this was read: a hop that was not there yet missed nothing.
    #[must_use]
    pub fn counted(mut self, ago_ns: u64) -> Self {
        let is_too_young = |ms: u32| u64::from(ms) * MILLISECOND < ago_ns;
        for windows in [&mut self.requests, &mut self.replies] {
            if is_too_young(self.nic_ms) {
                windows.left_nic = None;
                windows.reached_nic = None;
            }
            if is_too_young(self.tunnel_ms) {
                windows.encapsulated = None;
                windows.decapsulated = None;
            }
        }
        self
    }
}

/// Where the packet numbered `seq` vanished, by the windows of the hops after
/// [`Hop::Sent`] in their order; a hop without a window is not counted, and
/// makes the segment wider. A later hop proves the earlier ones, so one that
/// missed a packet which went on says nothing. None when no hop misses it
/// after the last that saw it.
#[must_use]
pub fn segment(seq: u32, hops: &[(Hop, Option<Window>)]) -> Option<Segment> {
    let mut from = Hop::Sent;
    let mut to = None;
    for &(hop, window) in hops {
        match window.map(|window| window.contains(seq)) {
            Some(Seen::Yes) => {
                from = hop;
                to = None;
            }
            Some(Seen::No) => to = to.or(Some(hop)),
            Some(Seen::TooOld) | None => {}
        }
    }
    to.map(|to| Segment { from, to })
}

/// Which sequence numbers were seen: the highest, a mask of the 64 up to it,
/// and how many in all. The shape of IPsec's anti-replay window (RFC 4303, 3.4.3),
/// with serial-number arithmetic (RFC 1982) so that it wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The highest sequence number seen; meaningless while `count` is 0.
    pub highest: u32,
    /// Bit `n` is set when `highest - n` was seen.
    pub mask: u64,
    /// Distinct numbers seen, modulo 2^32.
    pub count: u32,
}

/// What a window says of one sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It was seen.
    Yes,
    /// It was not, although the window reaches it or has not got so far yet.
    No,
    /// It is older than the window remembers.
    TooOld,
}

/// What recording a number did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// Newer than all before.
    Advanced,
    /// Older than the highest, not seen before.
    Reordered,
    /// Seen before.
    Duplicate,
    /// Older than the window remembers; not counted.
    TooOld,
}

impl Window {
    /// Numbers that a window remembers.
    pub const WIDTH: u32 = u64::BITS;

    /// Records that `seq` was seen.
    pub fn record(&mut self, seq: u32) -> Recorded {
        if self.count == 0 && self.mask == 0 {
            *self = Self { highest: seq, mask: 1, count: 1 };
            return Recorded::Advanced;
        }
        let ahead = seq.wrapping_sub(self.highest);
        if ahead != 0 && ahead < 1 << 31 {
            self.mask = self.mask.checked_shl(ahead).unwrap_or(0) | 1;
            self.highest = seq;
            self.count = self.count.wrapping_add(1);
            return Recorded::Advanced;
        }
        let behind = self.highest.wrapping_sub(seq);
        if behind >= Self::WIDTH {
            return Recorded::TooOld;
        }
        let bit = 1 << behind;
        if self.mask & bit != 0 {
            return Recorded::Duplicate;
        }
        self.mask |= bit;
        self.count = self.count.wrapping_add(1);
        Recorded::Reordered
    }

    /// Whether `seq` was seen.
    #[must_use]
    pub const fn contains(&self, seq: u32) -> Seen {
        if self.mask == 0 {
            return Seen::No;
        }
        let behind = self.highest.wrapping_sub(seq);
        if behind >= 1 << 31 {
            Seen::No
        } else if behind >= Self::WIDTH {
            Seen::TooOld
        } else if self.mask & (1 << behind) != 0 {
            Seen::Yes
        } else {
            Seen::No
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wraps_around() {
        let mut window = Window::default();
        assert_eq!(window.record(u32::MAX), Recorded::Advanced);
        assert_eq!(window.record(1), Recorded::Advanced);
        assert_eq!(window.record(0), Recorded::Reordered);
        assert_eq!(window.record(0), Recorded::Duplicate);
        assert_eq!(window.contains(u32::MAX), Seen::Yes);
        assert_eq!(window.contains(2), Seen::No);
        assert_eq!(window.count, 3);
    }

    fn window(seen: &[u32]) -> Option<Window> {
        let mut window = Window::default();
        for &seq in seen {
            window.record(seq);
        }
        Some(window)
    }

    fn placed(hops: [Option<Window>; 5], seq: u32) -> Option<(Hop, Hop)> {
        let names =
            [Hop::Encapsulated, Hop::LeftNic, Hop::ReachedNic, Hop::Decapsulated, Hop::Delivered];
        let hops: Vec<_> = names.into_iter().zip(hops).collect();
        segment(seq, &hops).map(|segment| (segment.from, segment.to))
    }

    #[test]
    fn the_first_hop_that_misses_a_probe_names_the_segment() {
        let (all, some, none) = (window(&[1, 2, 3]), window(&[1, 2]), window(&[]));
        assert_eq!(placed([all, all, some, some, some], 3), Some((Hop::LeftNic, Hop::ReachedNic)));
        assert_eq!(placed([all; 5], 3), None, "it arrived");
        assert_eq!(placed([none; 5], 3), Some((Hop::Sent, Hop::Encapsulated)));
        // Uncounted hops make the segment wider.
        assert_eq!(placed([None, all, None, None, some], 3), Some((Hop::LeftNic, Hop::Delivered)));
        assert_eq!(placed([None, all, None, None, None], 3), None, "nobody tells of the rest");
        // A later hop proves the earlier ones.
        assert_eq!(
            placed([none, none, all, some, some], 3),
            Some((Hop::ReachedNic, Hop::Decapsulated))
        );
    }

    #[test]
    fn what_a_window_forgot_proves_nothing() {
        let long: Vec<u32> = (0..200).collect();
        let (all, none) = (window(&long), window(&[]));
        assert_eq!(placed([all, all, none, none, none], 5), Some((Hop::Sent, Hop::ReachedNic)));
        assert_eq!(placed([all, all, all, all, all], 5), None);
    }

    #[test]
    fn reordering_and_wrap_around_keep_the_place() {
        let before = window(&[u32::MAX - 1, 0, u32::MAX, 1]);
        let after = window(&[u32::MAX, u32::MAX - 1]);
        assert_eq!(
            placed([before, before, after, after, after], 0),
            Some((Hop::LeftNic, Hop::ReachedNic))
        );
        assert_eq!(placed([before, before, after, after, after], u32::MAX), None);
    }

    #[test]
    fn segments_overlap_where_they_share_a_stretch() {
        let wire = Segment { from: Hop::LeftNic, to: Hop::ReachedNic };
        let far = Segment { from: Hop::ReachedNic, to: Hop::Decapsulated };
        let whole = Segment { from: Hop::Sent, to: Hop::Delivered };
        assert!(!wire.overlaps(far) && !far.overlaps(wire));
        assert!(whole.overlaps(wire) && far.overlaps(whole));
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(start: u32, steps in prop::collection::vec(0_u32..100, 1..200)) {
            let mut window = Window::default();
            let mut seen = std::collections::BTreeSet::new();
            let mut highest = None::<u64>;
            // 64-bit twins of the sequence numbers, far from zero.
            let origin = (1_u64 << 40) + u64::from(start);
            for step in steps {
                let wide = (highest.unwrap_or(origin) + u64::from(step)).saturating_sub(50);
                let expected = match highest {
                    Some(high) if wide + 64 <= high => Recorded::TooOld,
                    Some(high) if wide <= high && seen.contains(&wide) => Recorded::Duplicate,
                    Some(high) if wide <= high => Recorded::Reordered,
                    _ => Recorded::Advanced,
                };
                prop_assert_eq!(window.record((wide & 0xffff_ffff) as u32), expected);
                if expected != Recorded::TooOld {
                    seen.insert(wide);
                    highest = highest.max(Some(wide));
                }
            }
            prop_assert_eq!(window.count as usize, seen.len());
        }
    }
}
