//! The table of tracked connections.

use serde::{Deserialize, Serialize};

use super::Encapsulation;

/// What connection tracking of this network namespace says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conntrack {
    /// Entries.
    pub count: u32,
    /// The most entries that there may be, 0 for no limit
    /// (Documentation/networking/nf_conntrack-sysctl).
    pub max: u32,
    /// Counters since the namespace was made.
    pub counters: ConntrackCounters,
    /// Entries of this node's tunnels; none when they were not counted, since
    /// the table holds too few to matter or the kernel cannot pick them out.
    pub tunnels: Option<Vec<TunnelFlows>>,
}

/// Counters of connection tracking, summed over the CPUs
/// (`enum ctattr_stats_cpu`, linux/netfilter/nfnetlink_conntrack.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackCounters {
    /// Entries found for packets that take the slow path.
    pub found: u64,
    /// Packets that belong to no connection and cannot begin one.
    pub invalid: u64,
    /// Entries that could not be inserted.
    pub insert_failed: u64,
    /// Packets dropped: the table was full, or their entry could not be inserted.
    pub drop: u64,
    /// Entries that were evicted to make room in a full table.
    pub early_drop: u64,
    /// ICMP errors that could not be told whose they are.
    pub error: u64,
    /// Lookups that began anew.
    pub search_restart: u64,
    /// Two entries for one connection that were made into one.
    pub clash_resolve: u64,
    /// Entries refused because their bucket is too long.
    pub chain_too_long: u64,
}

/// Tracked outer flows of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelFlows {
    /// Their encapsulation.
    pub encapsulation: Encapsulation,
    /// How many.
    pub entries: u32,
    /// Of them, those that never saw a reply (without `IPS_SEEN_REPLY`): of
    /// VXLAN all, since the answer comes as a flow of its own (RFC 7348, 5).
    pub unreplied: u32,
}
