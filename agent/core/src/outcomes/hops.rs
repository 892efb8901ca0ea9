//! The ladder of one stream, joined from both ends: where a lost probe vanished.

use crate::ladder::{Climb, Hop, HopWindows, Seen, Segment, Window, segment};
use crate::probing::{PeerStatus, Stream};
use crate::time::{MILLISECOND, Mono};

/// Hops read this soon after a probe was sent may still miss it.
const UNDER_WAY_NS: u64 = 100 * MILLISECOND;

/// What the peer last said.
#[derive(Clone, Copy)]
pub(super) struct Told<'a> {
    /// When it was heard.
    pub(super) heard: Mono,
    /// When it was asked: of what was sent before, the peer knew when it answered.
    pub(super) asked: Mono,
    pub(super) status: &'a PeerStatus,
}

/// The hops of one stream, as both ends counted them.
pub(super) struct Hops<'a> {
    pub(super) stream: Stream,
    /// This node's half, and when it was read.
    pub(super) own: Option<(Mono, Climb)>,
    /// The peer's half.
    pub(super) told: Option<Told<'a>>,
}

impl Hops<'_> {
    /// Where a request vanished.
    pub(super) fn outbound(&self, seq: u32, sent: Mono) -> Option<Segment> {
        let own = self.own_since(sent).map(|climb| climb.requests).unwrap_or_default();
        let far = self.far_since(sent).map(|climb| climb.requests).unwrap_or_default();
        let told = self.told_since(sent).map(|told| window_of(told.status, self.stream));
        let delivered = told.map(Option::unwrap_or_default);
        segment(seq, &self.order(own, far, delivered))
    }

    /// Where the reply to a request that arrived vanished. The peer answers
    /// what it received, so its windows of replies are as old as its word.
    pub(super) fn inbound(&self, seq: u32, sent: Mono) -> Option<Segment> {
        let far = self.far_since(sent).map(|climb| climb.replies);
        let own = self.own_since(sent).map(|climb| climb.replies);
        if far.is_none() && own.is_none() {
            return None;
        }
        let (far, own) = (far.unwrap_or_default(), own.unwrap_or_default());
        segment(seq, &self.order(far, own, Some(Window::default())))
    }

    /// Whether the reply reached this node's NIC.
    pub(super) fn came_back(&self, seq: u32) -> bool {
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

/// How far a stream has come, as the peer says.
pub(super) fn window_of(status: &PeerStatus, stream: Stream) -> Option<Window> {
    status.windows.iter().find(|(known, _)| *known == stream).map(|(_, window)| *window)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Encapsulation;
    use crate::time::SECOND;

    const STREAM: Stream = Stream::Small(Encapsulation::Vxlan(8472));
    const SENT: Mono = Mono(100 * SECOND);
    const READ: Mono = Mono(101 * SECOND);
    /// Counted for longer than any probe here is old.
    const LONG: u32 = 60_000;

    fn upto(highest: u32) -> Option<Window> {
        let mut window = Window::default();
        (1..=highest).for_each(|seq| {
            window.record(seq);
        });
        Some(window)
    }

    /// A node's hops: what left it, and what reached it.
    fn climb(left: Option<Window>, reached: Option<Window>, counted_ms: u32) -> Climb {
        let requests = HopWindows {
            encapsulated: left,
            left_nic: left,
            reached_nic: reached,
            decapsulated: reached,
        };
        Climb { requests, replies: requests, nic_ms: counted_ms, tunnel_ms: counted_ms }
    }

    fn status(delivered: Option<Window>, hops: Option<Climb>) -> PeerStatus {
        PeerStatus {
            windows: delivered.map(|window| (STREAM, window)).into_iter().collect(),
            climbs: hops.map(|climb| (STREAM, climb)).into_iter().collect(),
            ..PeerStatus::default()
        }
    }

    fn outbound(own: Option<Climb>, asked: Mono, status: &PeerStatus) -> Option<(Hop, Hop)> {
        let told = Some(Told { heard: READ, asked, status });
        let hops = Hops { stream: STREAM, own: own.map(|climb| (READ, climb)), told };
        hops.outbound(9, SENT).map(|segment| (segment.from, segment.to))
    }

    #[test]
    fn both_halves_make_one_ladder() {
        let own = Some(climb(upto(9), None, LONG));
        let far = |reached, delivered| status(delivered, Some(climb(None, reached, LONG)));
        assert_eq!(
            outbound(own, READ, &far(upto(8), upto(8))),
            Some((Hop::LeftNic, Hop::ReachedNic))
        );
        assert_eq!(
            outbound(own, READ, &far(upto(9), upto(8))),
            Some((Hop::Decapsulated, Hop::Delivered))
        );
        assert_eq!(outbound(own, READ, &far(upto(9), upto(9))), None);
    }

    #[test]
    fn a_peer_that_was_asked_before_the_probe_left_proves_nothing() {
        let far = status(upto(8), Some(climb(None, upto(8), LONG)));
        let own = Some(climb(upto(9), None, LONG));
        assert_eq!(outbound(own, Mono(SENT.0 - 1), &far), None);
    }

    #[test]
    fn hops_of_an_agent_that_restarted_miss_nothing_from_before() {
        // Its windows are empty, and it says that they are half a second old.
        let empty = status(None, Some(climb(None, Some(Window::default()), 500)));
        let own = Some(climb(upto(9), None, LONG));
        // It does not answer what it did not receive: that much stays known.
        assert_eq!(outbound(own, READ, &empty), Some((Hop::LeftNic, Hop::Delivered)));
        // This node's programs were loaded anew: counters from zero, half a second old.
        let reset = Some(climb(Some(Window::default()), None, 500));
        let far = status(upto(8), Some(climb(None, upto(8), LONG)));
        assert_eq!(outbound(reset, READ, &far), Some((Hop::Sent, Hop::ReachedNic)));
    }

    #[test]
    fn own_hops_read_too_soon_are_not_used() {
        let far = status(upto(8), None);
        let own = climb(upto(8), None, LONG);
        let told = Some(Told { heard: READ, asked: READ, status: &far });
        let at = |read| Hops { stream: STREAM, own: Some((read, own)), told };
        let early = at(SENT.plus(UNDER_WAY_NS / 2)).outbound(9, SENT).unwrap();
        assert_eq!((early.from, early.to), (Hop::Sent, Hop::Delivered));
        let late = at(SENT.plus(UNDER_WAY_NS)).outbound(9, SENT).unwrap();
        assert_eq!((late.from, late.to), (Hop::Sent, Hop::Encapsulated));
    }

    #[test]
    fn a_reply_that_reached_this_nic_was_lost_on_the_way_in() {
        let climb = climb(None, upto(9), LONG);
        let hops = Hops { stream: STREAM, own: Some((READ, climb)), told: None };
        assert!(hops.came_back(9) && !hops.came_back(10));
        assert_eq!(
            hops.inbound(9, SENT).map(|s| (s.from, s.to)),
            Some((Hop::Decapsulated, Hop::Delivered))
        );
        let blind = Hops { own: None, ..hops };
        assert_eq!(blind.inbound(9, SENT), None);
    }
}
