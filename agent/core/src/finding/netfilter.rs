//! Evidence from netfilter's tables.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::{ChainHook, Committer, Controller, Matches, Readers, RuleAt};

/// One observation in netfilter's tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum Filtered {
    /// A rule that drops or rejects.
    ByRule {
        /// Its table, as "ip filter".
        table: String,
        /// Where it is.
        at: RuleAt,
        /// From which hooks packets come to it.
        hooks: Vec<ChainHook>,
        /// Which packets.
        matches: Matches,
        /// It answers with an error.
        rejects: bool,
        /// What its counter said when the ruleset last changed.
        packets: Option<u64>,
    },
    /// A base chain that drops what no rule decides.
    ByPolicy {
        /// Its table.
        table: String,
        /// Its name.
        chain: String,
        /// Its hook.
        hook: ChainHook,
        /// Rules in it.
        rules: u32,
    },
    /// A rule that not every iptables-nft can read.
    Illegible {
        /// Its table.
        table: String,
        /// Where it is.
        at: RuleAt,
        /// The expression that is not understood.
        expression: String,
        /// Who reads it.
        readers: Readers,
    },
    /// A base chain that iptables does not have, in one of its tables.
    ForeignChain {
        /// Its table.
        table: String,
        /// Its name.
        chain: String,
        /// "filter", "nat" or "route".
        type_of_chain: String,
        /// Its hook.
        hook: Option<ChainHook>,
        /// Its priority.
        priority: i32,
    },
    /// Rules of one backend of iptables.
    Backend {
        /// Of the older xtables; else of nftables.
        is_legacy: bool,
        /// Its table.
        table: String,
        /// How many rules.
        rules: u32,
    },
    /// The same rule again and again.
    Repeated {
        /// Its table.
        table: String,
        /// Its chain, and the handle of the latest.
        at: RuleAt,
        /// How often.
        times: u32,
        /// Rules in the chain.
        of: u32,
    },
    /// Rules that went all at once.
    Flushed {
        /// Whose.
        of: Controller,
        /// Chains before.
        chains: u32,
        /// Rules before.
        rules: u32,
        /// Chains now.
        chains_now: u32,
        /// Rules now.
        rules_now: u32,
        /// Who did it.
        by: Option<Committer>,
    },
}

impl Filtered {
    /// Words for a remedy: the table, the chain and the handle.
    pub(super) fn placeholders(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::ByRule { table, at, .. }
            | Self::Illegible { table, at, .. }
            | Self::Repeated { table, at, .. } => vec![
                ("{table}", table.clone()),
                ("{chain}", at.chain.clone()),
                ("{handle}", at.handle.to_string()),
            ],
            Self::ByPolicy { table, chain, .. } | Self::ForeignChain { table, chain, .. } => vec![
                ("{table}", table.clone()),
                ("{chain}", chain.clone()),
                // A policy is no rule and has none.
                ("{handle}", "N".to_owned()),
            ],
            Self::Backend { .. } | Self::Flushed { .. } => Vec::new(),
        }
    }
}

impl fmt::Display for Filtered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByRule { table, at, hooks, matches, rejects, packets } => {
                let hooks: Vec<_> = hooks.iter().map(|hook| hook.slug()).collect();
                let verb = if *rejects { "reject" } else { "drop" };
                write!(
                    f,
                    "rule in table {table}, chain {} (hook {}), handle {}: {matches} {verb}",
                    at.chain,
                    hooks.join(", "),
                    at.handle
                )?;
                packets.map_or(Ok(()), |n| write!(f, ", {n} packets when the rules last changed"))
            }
            Self::ByPolicy { table, chain, hook, rules } => write!(
                f,
                "chain {chain} of table {table} (hook {hook}) has the policy drop and {rules} rules"
            ),
            Self::Illegible { table, at, expression, readers } => {
                write!(
                    f,
                    "rule in table {table}, chain {}, handle {}: expression {expression} ",
                    at.chain, at.handle
                )?;
                f.write_str(match readers {
                    Readers::MisprintedFrom184 => {
                        "is unreadable for iptables-nft before 1.8.4, and later ones print the \
                         rule without that condition"
                    }
                    Readers::From188 => "is unreadable for iptables-nft before 1.8.8",
                    Readers::Nobody => "is unreadable for every iptables-nft",
                })
            }
            Self::ForeignChain { table, chain, type_of_chain, hook, priority } => write!(
                f,
                "chain {chain} of table {table}: type {type_of_chain} hook {} priority {priority}",
                hook.map_or("unknown", ChainHook::slug)
            ),
            Self::Backend { is_legacy, table, rules } => {
                let backend = if *is_legacy { "legacy xtables" } else { "nftables" };
                write!(f, "{rules} rules in table {table} of {backend}")
            }
            Self::Repeated { table, at, times, of } => write!(
                f,
                "{times} of {of} rules in table {table}, chain {} are the same one, the latest \
                 with handle {}",
                at.chain, at.handle
            ),
            Self::Flushed { of, chains, rules, chains_now, rules_now, by } => {
                write!(
                    f,
                    "{} had {chains} chains with {rules} rules and now has {chains_now} with \
                     {rules_now}",
                    of.slug()
                )?;
                by.as_ref()
                    .map_or(Ok(()), |by| write!(f, ": removed by {} (pid {})", by.name, by.pid))
            }
        }
    }
}
