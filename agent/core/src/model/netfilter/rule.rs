//! Rules that are kept one by one, each for what it may do.

use serde::{Deserialize, Serialize};

use super::{ChainHook, Matches};
use crate::model::ToolVersion;

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
    /// Packets that it took so far, as its counter said when the ruleset last
    /// changed; none without a counter.
    pub packets: Option<u64>,
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
    /// From 1.8.4 on it is read, and printed without its condition: wrongly.
    MisprintedFrom184,
    /// From 1.8.8 on.
    From188,
    /// None.
    Nobody,
}

impl Readers {
    /// The first version that reads it; none where none does. (Expressions that
    /// nft_is_expr_compatible, iptables/nft.c, accepts in each release. Seen: 1.8.7
    /// refuses what 1.8.9 reads, a range and a log with a group.)
    #[must_use]
    pub const fn since(self) -> Option<ToolVersion> {
        match self {
            Self::MisprintedFrom184 => Some(ToolVersion::three(1, 8, 4)),
            Self::From188 => Some(ToolVersion::three(1, 8, 8)),
            Self::Nobody => None,
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
