//! The tools that read and write netfilter's state on this node: the host's, and
//! those that containers on its network bring along.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where processes of this network namespace find their tools.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tools {
    /// One for the host and one for each other mount namespace, the host's
    /// first. Tools that a program carries beside the host's are a space of
    /// their own, of the same mount namespace.
    pub spaces: Vec<ToolSpace>,
}

/// What the processes of one mount namespace have in their file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolSpace {
    /// The mount namespace's number (`/proc/PID/ns/mnt`).
    pub mount_namespace: u64,
    /// The mount namespace is the first process's.
    pub is_host: bool,
    /// There was no time to look into it: what it has is not known.
    pub is_unread: bool,
    /// A few of its processes in this network namespace, those first that are
    /// known to work on sets and rules. To the host's belong those of other mount
    /// namespaces whose tools are the host's files.
    pub processes: Vec<ToolProcess>,
    /// ipset(8)'s library; none where none was found or its version is not told.
    pub ipset: Option<ToolVersion>,
    /// iptables(8) on nftables.
    pub iptables: Option<ToolVersion>,
    /// nft(8)'s library.
    pub nft: Option<ToolVersion>,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolProcess {
    /// Its number, as the agent sees it.
    pub pid: u32,
    /// Its name, at most 15 bytes (`/proc/PID/comm`).
    pub name: String,
}

/// A tool's version.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct ToolVersion {
    /// The first number.
    pub major: u16,
    /// The second.
    pub minor: u16,
    /// The third; none where the tool has but two.
    pub patch: Option<u16>,
}

impl ToolVersion {
    /// A version of two numbers.
    #[must_use]
    pub const fn two(major: u16, minor: u16) -> Self {
        Self { major, minor, patch: None }
    }

    /// A version of three numbers.
    #[must_use]
    pub const fn three(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch: Some(patch) }
    }
}

/// A text that is no version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no version of two or three numbers")]
pub struct BadToolVersion(String);

impl FromStr for ToolVersion {
    type Err = BadToolVersion;

    fn from_str(text: &str) -> Result<Self, BadToolVersion> {
        let number = |part: &str| {
            let is_plain = (1..=5).contains(&part.len())
                && part.bytes().all(|byte| byte.is_ascii_digit())
                && (part.len() == 1 || !part.starts_with('0'));
            part.parse().ok().filter(|_| is_plain)
        };
        let parts: Option<Vec<u16>> = text.splitn(4, '.').map(number).collect();
        match parts.as_deref() {
            Some(&[major, minor]) => Ok(Self::two(major, minor)),
            Some(&[major, minor, patch]) => Ok(Self::three(major, minor, patch)),
            _ => Err(BadToolVersion(text.chars().take(40).collect())),
        }
    }
}

impl TryFrom<String> for ToolVersion {
    type Error = BadToolVersion;

    fn try_from(text: String) -> Result<Self, BadToolVersion> {
        text.parse()
    }
}

impl From<ToolVersion> for String {
    fn from(version: ToolVersion) -> Self {
        version.to_string()
    }
}

impl fmt::Display for ToolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        self.patch.map_or(Ok(()), |patch| write!(f, ".{patch}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_written_alike_and_in_order() {
        for text in ["7.11", "1.8.4", "6.0", "10.0.65535"] {
            assert_eq!(text.parse::<ToolVersion>().unwrap().to_string(), text);
        }
        for text in ["", "7", "7.", "7.11.", "v7.11", "1.2.3.4", "7.011", "7.65536", "7.-1", "7. 1"]
        {
            assert!(text.parse::<ToolVersion>().is_err(), "{text}");
        }
        let version = |text: &str| text.parse::<ToolVersion>().unwrap();
        assert!(version("7.9") < version("7.10"));
        assert!(version("7.15") < version("7.15.1"));
        assert!(version("1.8.4") < version("1.8.10"));
    }
}
