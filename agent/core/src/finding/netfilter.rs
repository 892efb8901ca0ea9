//! Evidence from netfilter's tables.

mod words;

use std::fmt;

use serde::{Deserialize, Serialize};

use self::words::Place;
use crate::model::{
    ChainHook, Committer, Controller, Encapsulation, Matches, Readers, RuleAt, ToolProcess,
    ToolVersion,
};

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
        /// What its counter said when it was last looked at.
        packets: Option<u64>,
        /// The netlink port of the program that alone may change the table
        /// (NFT_TABLE_F_OWNER).
        #[serde(default)]
        owner: Option<u32>,
    },
    /// That rule's counter grew.
    Counted {
        /// By so many packets.
        packets: u64,
        /// Within so many seconds.
        seconds: u32,
        /// Lost probes of the tunnel.
        probes: u32,
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
        /// The tunnel whose packets are dropped; none where pods' own are.
        #[serde(default)]
        tunnel: Option<Encapsulation>,
        /// The netlink port of the program that alone may change the table
        /// (NFT_TABLE_F_OWNER).
        #[serde(default)]
        owner: Option<u32>,
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
    /// An iptables-nft that is installed here and cannot read a table.
    Refused {
        /// The table.
        table: String,
        /// The tool's version.
        tool: ToolVersion,
        /// It is among the host's files; else in a container.
        on_host: bool,
        /// Who has it; none of the host's that no agent uses.
        process: Option<ToolProcess>,
        /// The process is an agent that reads the tables.
        in_use: bool,
        /// The first version that reads the table; none where none does.
        since: Option<ToolVersion>,
    },
    /// An iptables-nft that is installed here and prints a rule wrongly.
    Misprints {
        /// The tool's version.
        tool: ToolVersion,
        /// It is among the host's files; else in a container.
        on_host: bool,
        /// Who has it; none of the host's that no agent uses.
        process: Option<ToolProcess>,
    },
    /// The host's iptables-nft reads what a container's cannot.
    HostReads {
        /// Its version.
        tool: ToolVersion,
    },
    /// No iptables-nft was found, neither the host's nor a container's.
    NoReader,
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
    /// A rule that keeps packets out of connection tracking.
    Untracks {
        /// Its table.
        table: String,
        /// Where it is.
        at: RuleAt,
        /// From which hooks packets come to it.
        hooks: Vec<ChainHook>,
        /// Which packets.
        matches: Matches,
        /// The netlink port of the program that alone may change the table
        /// (NFT_TABLE_F_OWNER).
        #[serde(default)]
        owner: Option<u32>,
    },
    /// Chains of kube-router that packets still come to.
    Hooked {
        /// Rules of base chains that lead into them, with their tables.
        entries: Vec<(String, RuleAt)>,
        /// Its chains.
        chains: u32,
        /// Rules in them.
        rules: u32,
        /// Rules in them that drop or reject.
        denials: u32,
    },
}

impl Filtered {
    /// Words for a remedy: the table, the chain and the handle.
    pub(super) fn placeholders(&self) -> Vec<(&'static str, String)> {
        let names = |table: &str, at: &RuleAt| {
            vec![
                ("{table}", table.to_owned()),
                ("{chain}", at.chain.clone()),
                ("{handle}", at.handle.to_string()),
            ]
        };
        match self {
            Self::ByRule { table, at, owner, .. } | Self::Untracks { table, at, owner, .. } => {
                let place = Place { table, chain: &at.chain, owner: *owner };
                let advice = [
                    ("{command to admit}", place.admit_by_rule(at)),
                    ("{command to forward}", place.forward_by_rule()),
                    ("{command to delete}", place.delete(at)),
                ];
                [names(table, at), advice.to_vec()].concat()
            }
            Self::Illegible { table, at, .. } | Self::Repeated { table, at, .. } => {
                names(table, at)
            }
            Self::ByPolicy { table, chain, tunnel, owner, .. } => {
                let place = Place { table, chain, owner: *owner };
                vec![
                    ("{table}", table.clone()),
                    ("{chain}", chain.clone()),
                    ("{command to admit}", place.admit_before("the policy", *tunnel)),
                    ("{command to forward}", place.forward_by_policy()),
                ]
            }
            Self::ForeignChain { table, chain, .. } => vec![
                ("{table}", table.clone()),
                ("{chain}", chain.clone()),
                // A chain is no rule and has none.
                ("{handle}", "N".to_owned()),
            ],
            Self::Hooked { entries, .. } => {
                let commands = entries.iter().map(|(table, at)| {
                    format!("`nft delete rule {table} {} handle {}`", at.chain, at.handle)
                });
                vec![("{unhook}", commands.collect::<Vec<_>>().join(", "))]
            }
            Self::Counted { .. }
            | Self::Refused { .. }
            | Self::Misprints { .. }
            | Self::HostReads { .. }
            | Self::NoReader
            | Self::Backend { .. }
            | Self::Flushed { .. } => Vec::new(),
        }
    }
}

impl fmt::Display for Filtered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByRule { table, at, hooks, matches, rejects, packets, owner } => {
                let hooks: Vec<_> = hooks.iter().map(|hook| hook.slug()).collect();
                let verb = if *rejects { "reject" } else { "drop" };
                write!(
                    f,
                    "rule in table {table}, chain {} (hook {}), handle {}: {matches} {verb}",
                    at.chain,
                    hooks.join(", "),
                    at.handle
                )?;
                packets.map_or(Ok(()), |n| write!(f, ", {n} packets so far"))?;
                owned(f, *owner)
            }
            Self::Counted { packets, seconds, probes } => write!(
                f,
                "its counter grew by {packets} packets in {seconds} s, and {probes} probes of the \
                 tunnel were lost"
            ),
            Self::ByPolicy { table, chain, hook, rules, owner, .. } => {
                write!(
                    f,
                    "chain {chain} of table {table} (hook {hook}) has the policy drop and {rules} \
                     rules"
                )?;
                owned(f, *owner)
            }
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
                    Readers::MisprintedBefore188 => {
                        "is not read by iptables-nft before 1.8.8, which prints the rule without \
                         it"
                    }
                    Readers::RefusedFrom189 => {
                        "is unreadable for iptables-nft from 1.8.9 on, and those before 1.8.8 \
                         print the rule without it"
                    }
                    Readers::From188 => "is unreadable for iptables-nft before 1.8.8",
                    Readers::Nobody => "is unreadable for every iptables-nft",
                })
            }
            Self::Refused { table, tool, on_host, process, in_use, since } => {
                reader(f, *tool, *on_host, process.as_ref())?;
                if !in_use {
                    f.write_str(", which no agent is known to use,")?;
                }
                write!(f, " cannot read table {table}: ")?;
                match since {
                    Some(since) => write!(f, "{since} is the first that can"),
                    None => f.write_str("nor can any other version"),
                }
            }
            Self::Misprints { tool, on_host, process } => {
                reader(f, *tool, *on_host, process.as_ref())?;
                f.write_str(" prints it so")
            }
            Self::HostReads { tool } => write!(
                f,
                "the host's own iptables-nft is {tool} and reads it, but a container does not \
                 use that one"
            ),
            Self::NoReader => f.write_str("no iptables-nft was found on this node"),
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
            Self::Untracks { table, at, hooks, matches, owner } => {
                let hooks: Vec<_> = hooks.iter().map(|hook| hook.slug()).collect();
                write!(
                    f,
                    "rule in table {table}, chain {} (hook {}), handle {}: {matches} notrack",
                    at.chain,
                    hooks.join(", "),
                    at.handle
                )?;
                owned(f, *owner)
            }
            Self::Hooked { entries, chains, rules, denials } => {
                write!(
                    f,
                    "kube-router has {chains} chains with {rules} rules, of which {denials} drop \
                     or reject; packets come to them from "
                )?;
                for (number, (table, at)) in entries.iter().enumerate() {
                    let comma = if number > 0 { ", " } else { "" };
                    write!(f, "{comma}{table} {} (handle {})", at.chain, at.handle)?;
                }
                Ok(())
            }
        }
    }
}

fn owned(f: &mut fmt::Formatter<'_>, owner: Option<u32>) -> fmt::Result {
    owner.map_or(Ok(()), |port| write!(f, "; only netlink port {port} may change the table"))
}

fn reader(
    f: &mut fmt::Formatter<'_>,
    tool: ToolVersion,
    on_host: bool,
    process: Option<&ToolProcess>,
) -> fmt::Result {
    write!(f, "iptables-nft {tool} ")?;
    if let Some(ToolProcess { pid, name }) = process {
        write!(f, "of {name} (process {pid}) ")?;
    }
    f.write_str(if on_host { "on the host" } else { "in a container" })
}
