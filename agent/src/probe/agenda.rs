//! Which probes are still to be sent, and the beat at which everything happens.

use std::collections::VecDeque;

use overlaywatch_core::probing::ProbeRequest;
use overlaywatch_core::time::{MILLISECOND, Mono};

/// Waking up is what probing costs, so all that is due is done in beats.
/// Kernel timestamps and dwell times keep them out of every measurement.
const BEAT_NS: u64 = 48 * MILLISECOND;
/// Each probe is sent in the beat nearest to its time.
const NEAR_NS: u64 = BEAT_NS / 2;
/// Every second beat is a look. Beats are counted from the orders, so the fifth
/// look comes 20 ms before the next orders are made: they rest on fresh news.
const LOOK_BEATS: u32 = 2;
/// However often orders come, a look is never later than this after the last.
const LONGEST_LOOK_NS: u64 = 3 * BEAT_NS;
/// Probes that wait at most; beyond, the oldest are sent at once.
const LONGEST_WAIT: usize = 8_192;

/// The prober's plan for the next moments.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    /// In order of time.
    requests: VecDeque<(Mono, ProbeRequest)>,
    /// None until the first orders.
    next_beat: Option<Mono>,
    /// Beats since the orders.
    beats: u32,
    last_look: Mono,
    /// How late the most delayed beat was since the last look.
    lag_ns: u64,
}

impl Agenda {
    /// Takes new orders. What is left of the old ones stays due.
    pub(super) fn add(&mut self, requests: Vec<ProbeRequest>, now: Mono) {
        self.requests.extend(
            requests
                .into_iter()
                .map(|request| (now.plus(u64::from(request.after_ms) * MILLISECOND), request)),
        );
        self.requests.make_contiguous().sort_by_key(|(due, _)| *due);
        match self.next_beat {
            Some(due) => self.lag_ns = self.lag_ns.max(now.since(due)),
            None => self.last_look = now,
        }
        self.next_beat = Some(now);
        self.beats = 0;
    }

    /// When to wake up.
    pub(super) const fn next_beat(&self) -> Option<Mono> {
        self.next_beat
    }

    /// Begins the beat that is due, if one is; beats that were missed are not
    /// made up for.
    pub(super) fn begin(&mut self, now: Mono) -> bool {
        let Some(due) = self.next_beat.filter(|due| *due <= now) else { return false };
        self.lag_ns = self.lag_ns.max(now.since(due));
        let next = due.plus(BEAT_NS);
        self.next_beat = Some(if next <= now { now.plus(BEAT_NS) } else { next });
        self.beats += 1;
        true
    }

    /// The next probe of this beat.
    pub(super) fn take_due(&mut self, now: Mono) -> Option<ProbeRequest> {
        let (due, _) = self.requests.front()?;
        if *due > now.plus(NEAR_NS) && self.requests.len() <= LONGEST_WAIT {
            return None;
        }
        self.requests.pop_front().map(|(_, request)| request)
    }

    /// Whether this beat is a look; the first beat is that of the orders.
    pub(super) fn is_look(&self, now: Mono) -> bool {
        let is_turn = self.beats > 1 && (self.beats - 1).is_multiple_of(LOOK_BEATS);
        is_turn || now.since(self.last_look) >= LONGEST_LOOK_NS
    }

    /// Begins a look: how late the most delayed beat was since the last one,
    /// nanoseconds.
    pub(super) fn look(&mut self, now: Mono) -> u64 {
        self.last_look = now;
        std::mem::take(&mut self.lag_ns)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use overlaywatch_core::model::PeerId;
    use overlaywatch_core::probing::Stream;

    use super::*;

    const START: Mono = Mono(1_000 * MILLISECOND);

    fn at(milliseconds: u64) -> Mono {
        START.plus(milliseconds * MILLISECOND)
    }

    fn request(after_ms: u16) -> ProbeRequest {
        let target = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let stream = Stream::Underlay;
        ProbeRequest { peer: PeerId(target), stream, target, source: None, ip_bytes: 0, after_ms }
    }

    /// Lives from `from` to `to`: when each probe was sent, and when it looked.
    fn live(agenda: &mut Agenda, from: u64, to: u64) -> (Vec<(u64, u16)>, Vec<u64>) {
        let (mut sent, mut looks) = (Vec::new(), Vec::new());
        for now in from..to {
            if !agenda.begin(at(now)) {
                continue;
            }
            while let Some(request) = agenda.take_due(at(now)) {
                sent.push((now, request.after_ms));
            }
            if agenda.is_look(at(now)) {
                agenda.look(at(now));
                looks.push(now);
            }
        }
        (sent, looks)
    }

    #[test]
    fn probes_leave_in_the_nearest_beat_and_looks_come_before_the_next_orders() {
        let mut agenda = Agenda::default();
        agenda.add([0, 15, 30, 49, 400].map(request).to_vec(), at(0));
        let (sent, looks) = live(&mut agenda, 0, 500);
        assert_eq!(sent, [(0, 0), (0, 15), (48, 30), (48, 49), (384, 400)]);
        assert_eq!(looks, [96, 192, 288, 384, 480]);
        agenda.add(Vec::new(), at(500));
        assert_eq!(live(&mut agenda, 500, 1_000).1, [596, 692, 788, 884, 980]);
    }

    #[test]
    fn new_orders_leave_the_rest_of_the_old_ones_due() {
        let mut agenda = Agenda::default();
        agenda.add([0, 450, 600].map(request).to_vec(), at(0));
        assert_eq!(live(&mut agenda, 0, 1).0, [(0, 0)]);
        agenda.add(vec![request(0)], at(500));
        assert_eq!(live(&mut agenda, 500, 700).0, [(500, 450), (500, 0), (596, 600)]);
    }

    #[test]
    fn looks_come_however_often_orders_come() {
        let mut agenda = Agenda::default();
        let mut looks = Vec::new();
        for now in (0..2_000).step_by(50) {
            agenda.add(Vec::new(), at(now));
            looks.extend(live(&mut agenda, now, now + 50).1);
        }
        assert!(looks.windows(2).all(|pair| pair[1] - pair[0] <= 160), "{looks:?}");
        assert!(looks.len() > 12, "{looks:?}");
    }

    #[test]
    fn a_late_beat_is_told_whoever_comes_first() {
        let mut agenda = Agenda::default();
        agenda.add(Vec::new(), at(0));
        live(&mut agenda, 0, 100);
        // The beat at 144 comes at 700; or the orders do.
        assert!(agenda.begin(at(700)));
        assert_eq!(agenda.look(at(700)), 556 * MILLISECOND);
        assert_eq!(agenda.next_beat(), Some(at(748)));
        agenda.add(Vec::new(), at(1_748));
        assert_eq!(agenda.look(at(1_748)), 1_000 * MILLISECOND);
    }
}
