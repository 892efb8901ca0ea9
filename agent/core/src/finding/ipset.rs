//! Observations about IP sets and the tools that read them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::ToolVersion;

/// One observation about IP sets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum SetEvidence {
    /// A set with a revision that a tool in use does not know.
    Beyond {
        /// The set.
        set: String,
        /// Its type.
        set_type: String,
        /// Its address family, 4 or 6.
        family: Option<u8>,
        /// Its revision.
        revision: u8,
        /// The newest that the tool knows.
        newest: u8,
        /// The tool's version.
        tool: ToolVersion,
        /// Who uses the tool.
        process: String,
        /// That process's number.
        pid: u32,
        /// A few further sets that the tool cannot read either.
        others: Vec<String>,
        /// How many more there are.
        more: u32,
    },
    /// The host's own ipset, beside a container's that matters; none where the
    /// host has none, or its version is not told.
    HostTool {
        /// Its version.
        tool: Option<ToolVersion>,
    },
    /// A set that somebody made anew with another revision while the agent watched.
    MadeAnew {
        /// The set.
        set: String,
        /// Its revision before.
        from: u8,
        /// Its revision now.
        to: u8,
    },
    /// Whose tool makes sets of a revision.
    Writer {
        /// The sets' type.
        set_type: String,
        /// Their revision.
        revision: u8,
        /// The tool's version.
        tool: ToolVersion,
        /// Who uses it; none when it is only known that the host has it.
        process: Option<String>,
        /// That process's number.
        pid: Option<u32>,
    },
    /// Sets with names that kube-router gives its own.
    KubeRouter {
        /// How many.
        count: u32,
        /// The first.
        name: String,
    },
    /// How full a set is.
    Filled {
        /// The set.
        set: String,
        /// Its type.
        set_type: String,
        /// Members in it.
        elements: u32,
        /// Members that fit.
        capacity: u32,
        /// Rules and sets that refer to it.
        references: u32,
    },
}

impl SetEvidence {
    /// What it puts in the place of placeholders in a remedy.
    pub(super) fn placeholders(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Filled { set_type, .. } => vec![("{kind}", set_type.clone())],
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for SetEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Beyond {
                set,
                set_type,
                revision,
                newest,
                tool,
                process,
                pid,
                others,
                more,
                ..
            } => {
                write!(
                    f,
                    "set {set} ({set_type}) has revision {revision}, and ipset {tool} of {process} \
                     (process {pid}) reads revisions up to {newest}"
                )?;
                if !others.is_empty() {
                    write!(f, "; nor can it read {}", others.join(", "))?;
                }
                if *more > 0 { write!(f, " and {more} more") } else { Ok(()) }
            }
            Self::HostTool { tool: Some(tool) } => write!(
                f,
                "the host's own ipset is {tool}: a container does not use it, so upgrading it \
                 changes nothing"
            ),
            Self::HostTool { tool: None } => f.write_str(
                "a container does not use the host's ipset, so installing or upgrading it changes \
                 nothing",
            ),
            Self::MadeAnew { set, from, to } => {
                write!(f, "{set} was made anew: its revision was {from} and is {to}")
            }
            Self::Writer { set_type, revision, tool, process, pid } => {
                let owner = match (process, pid) {
                    (Some(process), Some(pid)) => format!("of {process} (process {pid})"),
                    _ => "of the host".to_owned(),
                };
                write!(
                    f,
                    "ipset {tool} {owner} makes sets of type {set_type} with revision {revision}"
                )
            }
            Self::KubeRouter { count: 1, name } => {
                write!(f, "1 set is named as kube-router names its own: {name}")
            }
            Self::KubeRouter { count, name } => {
                write!(f, "{count} sets are named as kube-router names its own, as {name}")
            }
            Self::Filled { set, set_type, elements, capacity, references } => write!(
                f,
                "set {set} ({set_type}) has {elements} of {capacity} members; {references} \
                 {} to it",
                if *references == 1 { "rule or set refers" } else { "rules or sets refer" }
            ),
        }
    }
}
