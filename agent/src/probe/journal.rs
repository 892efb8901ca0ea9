//! What prober and responder saw since the last look, and their counters.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use overlaywatch_core::model::PeerId;
use overlaywatch_core::probing::{Ignored, ProbeEvent, ProberCounters};
use overlaywatch_core::time::{Mono, SECOND};

use super::socket::Socket;
use crate::clock;

/// A kernel timestamp older than this was not waiting: the wall clock was stepped.
const OLDEST_NS: u64 = 10 * SECOND;

/// Shared by prober and responder.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// In the order in which things happened here.
    pub(super) events: Vec<ProbeEvent>,
    pub(super) counters: ProberCounters,
    /// Datagrams that own sockets dropped since the last look.
    pub(super) socket_drops: u32,
    /// Whom the orders name.
    pub(super) peers: Arc<HashMap<IpAddr, PeerId>>,
}

impl Journal {
    /// Counts a packet that is ignored.
    pub(super) fn ignore(&mut self, reason: Ignored) {
        self.ignore_many(reason, 1);
    }

    /// Counts packets that are ignored.
    pub(super) fn ignore_many(&mut self, reason: Ignored, count: u32) {
        if count > 0 {
            *self.counters.ignored.entry(reason).or_default() += u64::from(count);
        }
    }

    /// The peer behind an address.
    pub(super) fn peer(&self, address: IpAddr) -> Result<PeerId, Ignored> {
        self.peers.get(&address).copied().ok_or(Ignored::Stranger)
    }

    /// Takes note of the drop counter that came with a packet.
    pub(super) fn note_dropped(&mut self, socket: &mut Socket, total: u32) {
        self.socket_drops = self.socket_drops.saturating_add(socket.note_dropped(total));
    }

    /// Counts a packet that was sent: its payload and headers.
    pub(super) fn count_sent(&mut self, payload: usize, to: IpAddr) {
        self.counters.sent_bytes += (payload + header_bytes(to)) as u64;
    }
}

/// Bytes of the IP header and the eight of a UDP or ICMP echo header.
pub(super) const fn header_bytes(target: IpAddr) -> usize {
    match target {
        IpAddr::V4(_) => 20 + 8,
        IpAddr::V6(_) => 40 + 8,
    }
}

/// Both clocks at one moment: kernel timestamps are of the wall clock, which
/// may be stepped, so they serve only as an age.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clocks {
    mono: Mono,
    wall_ns: u64,
}

impl Clocks {
    pub(super) fn read() -> Self {
        Self { mono: clock::mono(), wall_ns: clock::realtime_ns() }
    }

    /// Nanoseconds since the kernel received a packet; without a credible
    /// timestamp it came just now.
    pub(super) fn age_ns(self, received_ns: Option<u64>) -> u64 {
        received_ns
            .and_then(|received| self.wall_ns.checked_sub(received))
            .filter(|&age| age <= OLDEST_NS)
            .unwrap_or(0)
    }

    /// When the kernel received a packet.
    pub(super) fn when(self, received_ns: Option<u64>) -> Mono {
        self.mono.minus(self.age_ns(received_ns))
    }
}
