//! Two observations a few seconds apart: what moved between them.

use crate::model::{IfIndex, LinkCounters};
use crate::snapshot::Snapshot;

/// The present observation beside an earlier one of the same agent.
#[derive(Clone, Copy, Debug)]
pub struct Delta<'a> {
    /// The earlier one; none right after the start.
    pub before: Option<&'a Snapshot>,
    /// The present one.
    pub now: &'a Snapshot,
}

/// How a device's counters moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets not sent, for whatever reason the device counts.
    pub tx_lost: u64,
}

impl Delta<'_> {
    /// How a device's counters moved; none when one of the two observations
    /// lacks the device, or when its counters began anew.
    #[must_use]
    pub fn device(&self, index: IfIndex) -> Option<Moved> {
        let now = &self.now.links.seen()?.get(&index)?.counters;
        let before = &self.before?.links.seen()?.get(&index)?.counters;
        // Tunnels count a refusal of the layers below as dropped or as an
        // error, never as both (iptunnel_xmit_stats, include/net/ip_tunnels.h).
        let lost = |counters: &LinkCounters| counters.tx_dropped.saturating_add(counters.tx_errors);
        Some(Moved {
            tx_packets: now.tx_packets.checked_sub(before.tx_packets)?,
            tx_lost: lost(now).checked_sub(lost(before))?,
        })
    }
}
