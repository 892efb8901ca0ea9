//! Which probes are still to be sent, and when the prober looks up.

use std::collections::VecDeque;

use overlaywatch_core::probing::ProbeRequest;
use overlaywatch_core::time::{MILLISECOND, Mono};

/// Probes due within this time are sent in one wake-up: waking up is what
/// probing costs.
const TOGETHER_NS: u64 = 5 * MILLISECOND;
/// Looks follow each other in this time. Counted from the orders, the fifth
/// comes shortly before the next orders are made, which thus rest on fresh news.
const LOOK_NS: u64 = 97 * MILLISECOND;
/// New orders postpone a look to no later than this after the last one.
const LONGEST_LOOK_NS: u64 = 150 * MILLISECOND;
/// Probes that wait at most; beyond, the oldest are sent at once.
const LONGEST_WAIT: usize = 8_192;

/// The prober's plan for the next moments.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    /// In order of time.
    requests: VecDeque<(Mono, ProbeRequest)>,
    /// None until the first orders.
    next_look: Option<Mono>,
    last_look: Mono,
    /// How late the most delayed wake-up was since the last look.
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
        if self.next_look.is_none() {
            self.last_look = now;
        }
        let latest = self.last_look.plus(LONGEST_LOOK_NS);
        self.next_look = Some(now.plus(LOOK_NS).min(latest));
    }

    /// The next probe that is due.
    pub(super) fn take_due(&mut self, now: Mono) -> Option<ProbeRequest> {
        let (due, _) = self.requests.front()?;
        if *due > now.plus(TOGETHER_NS) && self.requests.len() <= LONGEST_WAIT {
            return None;
        }
        self.lag_ns = self.lag_ns.max(now.since(*due));
        self.requests.pop_front().map(|(_, request)| request)
    }

    /// Whether it is time to look; if so, when the next look comes is settled.
    pub(super) fn is_look_due(&mut self, now: Mono) -> bool {
        match self.next_look {
            Some(due) if due <= now.plus(TOGETHER_NS) => {
                self.lag_ns = self.lag_ns.max(now.since(due));
                self.last_look = now;
                // Looks that were missed are not made up for.
                let next = due.plus(LOOK_NS);
                self.next_look = Some(if next <= now { now.plus(LOOK_NS) } else { next });
                true
            }
            _ => false,
        }
    }

    /// When to wake up at the latest.
    pub(super) fn next_wake(&self) -> Option<Mono> {
        let request = self.requests.front().map(|(due, _)| *due);
        request.into_iter().chain(self.next_look).min()
    }

    /// How late the most delayed wake-up was since this was last asked, nanoseconds.
    pub(super) fn take_lag_ns(&mut self) -> u64 {
        std::mem::take(&mut self.lag_ns)
    }
}
