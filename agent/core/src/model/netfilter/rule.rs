//! Rules that are kept one by one, each for what it may do.

use serde::{Deserialize, Serialize};

use super::{ChainHook, Matches};
use crate::model::ToolVersion;
use crate::time::Mono;

/// Where a rule is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleAt {
    /// Its chain.
    pub chain: String,
    /// Its handle, unique within the table.
    pub handle: u64,
}

/// A rule that drops or rejects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// Where it is.
    pub at: RuleAt,
    /// It answers with an error instead of being silent.
    pub rejects: bool,
    /// From which hooks packets come to it.
    pub hooks: Vec<ChainHook>,
    /// Which packets: its own conditions, and those of the jump that leads to it
    /// where there is but one.
    pub matches: Matches,
    /// Packets that it took so far, as its counter said when it was last looked
    /// at; none without a counter that counts what it takes and nothing else.
    pub packets: Option<u64>,
    /// How that grew when it last did; none while it stands still.
    #[serde(default)]
    pub growth: Option<Growth>,
}

/// How a counter grew from one look at it to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// Packets that came.
    pub packets: u64,
    /// When it was looked at before.
    pub since: Mono,
    /// When it was looked at.
    pub at: Mono,
}

impl Blocker {
    /// Takes what its counter says now, after a look at `since`; whether it grew.
    /// One that was set to zero begins anew.
    pub fn count(&mut self, packets: u64, since: Mono, at: Mono) -> bool {
        let before = self.packets.replace(packets);
        let came = before.map_or(0, |before| packets.saturating_sub(before));
        if came > 0 {
            self.growth = Some(Growth { packets: came, since, at });
        }
        came > 0
    }
}

/// A rule that keeps packets out of connection tracking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untracking {
    /// Where it is.
    pub at: RuleAt,
    /// From which hooks packets come to it.
    pub hooks: Vec<ChainHook>,
    /// Which packets, as of a [`Blocker`].
    pub matches: Matches,
}

/// A rule that not every iptables-nft can read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Illegible {
    /// Where it is.
    pub at: RuleAt,
    /// The first expression that is not understood, by the kernel's name.
    pub expression: String,
    /// Who reads it.
    pub readers: Readers,
}

/// Since when iptables-nft skips a base chain that is not its own, and reads the
/// rest of the table (nft_cache_add_base_chain, iptables/nft-cache.c). Seen:
/// 1.8.7 reads nothing of such a table, 1.8.9 does.
pub const SKIPS_FOREIGN_CHAINS: ToolVersion = ToolVersion::three(1, 8, 8);

/// Which versions of iptables-nft read a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readers {
    /// From 1.8.8 on; those before print it without its condition: wrongly.
    MisprintedBefore188,
    /// From 1.8.4 on it is read, and printed without its condition: wrongly.
    MisprintedFrom184,
    /// From 1.8.8 on.
    From188,
    /// None: those before 1.8.8 print it without what it does, 1.8.9 and later
    /// refuse the table.
    RefusedFrom189,
    /// None.
    Nobody,
}

/// Since when iptables-nft reads what nft makes of comparisons of ports and marks,
/// or sees that it cannot. Seen: 1.8.7 prints such a rule without them.
const SEES_COMPARISONS: ToolVersion = ToolVersion::three(1, 8, 8);
/// Since when a rule that it cannot read stops it ("Parsing nftables rule failed").
/// Seen: 1.8.9.
const STOPS_AT_RULES: ToolVersion = ToolVersion::three(1, 8, 9);

impl Readers {
    /// The first version that reads it; none where none does. (Expressions that
    /// nft_is_expr_compatible, iptables/nft.c, accepts in each release. Seen: 1.8.7
    /// refuses what 1.8.9 reads, a range and a log with a group.)
    #[must_use]
    pub const fn since(self) -> Option<ToolVersion> {
        match self {
            Self::MisprintedFrom184 => Some(ToolVersion::three(1, 8, 4)),
            Self::MisprintedBefore188 | Self::From188 => Some(SEES_COMPARISONS),
            Self::RefusedFrom189 | Self::Nobody => None,
        }
    }

    /// Whether this version reads nothing of a table that has such a rule.
    #[must_use]
    pub fn stop(self, tool: ToolVersion) -> bool {
        match self {
            Self::MisprintedBefore188 => false,
            Self::RefusedFrom189 => tool >= STOPS_AT_RULES,
            Self::MisprintedFrom184 | Self::From188 | Self::Nobody => {
                self.since().is_none_or(|since| tool < since)
            }
        }
    }

    /// Whether this version reads the table and prints such a rule wrongly.
    #[must_use]
    pub fn is_misprinted_by(self, tool: ToolVersion) -> bool {
        match self {
            Self::MisprintedBefore188 | Self::RefusedFrom189 => tool < SEES_COMPARISONS,
            Self::MisprintedFrom184 => self.since().is_none_or(|since| tool >= since),
            Self::From188 | Self::Nobody => false,
        }
    }
}

/// A chain in which one rule is there again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flood {
    /// The chain, and the handle of the latest.
    pub at: RuleAt,
    /// How often the same rule is there.
    pub times: u32,
    /// Rules in the chain.
    pub rules: u32,
}
