//! The kernel's IP sets: what they are and how full, never what is in them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ToolVersion;
use crate::time::Mono;

/// The sets of this network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpSets {
    /// The sets, in order of their names.
    pub sets: Vec<IpSet>,
    /// What the running kernel offers of each set type in use, by the type's name.
    pub types: BTreeMap<String, Revisions>,
    /// Sets that were made anew under the same name while the agent watched,
    /// the latest last; the oldest are forgotten.
    pub changes: Vec<SetChange>,
    /// When a set was last seen whose name says that a controller swaps it in
    /// and destroys it (`TMP-…`), and its name.
    pub temporary: Option<(String, Mono)>,
}

/// One set, by its header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpSet {
    /// Its name.
    pub name: String,
    /// Its type, as ipset(8) writes it: "hash:ip".
    pub kind: String,
    /// The address family of its members: 4 or 6; none where the type has none.
    pub family: Option<u8>,
    /// The revision of its type that its creator chose. A tool that does not
    /// know it cannot read the set.
    pub revision: u8,
    /// Members in it.
    pub elements: u32,
    /// Members that fit; none for types without a limit of their own.
    pub capacity: Option<u32>,
    /// Rules and sets that refer to it.
    pub references: u32,
    /// Kernel memory that it takes, bytes.
    pub bytes: u32,
    /// Evicts a member when it is full, instead of refusing the new one (`forceadd`).
    pub evicts: bool,
}

impl IpSet {
    /// Whether it has a name that kube-router's network policy controller gives
    /// its own, or one that it is about to swap in (pkg/utils/ipset.go); sets of
    /// IPv6 addresses have a word before it.
    #[must_use]
    pub fn is_of_kube_router(&self) -> bool {
        let name = self.name.strip_prefix("inet6:").unwrap_or(&self.name);
        ["KUBE-SRC-", "KUBE-DST-", "TMP-"].into_iter().any(|own| name.starts_with(own))
    }
}

/// The revisions of a set type that the kernel offers, both included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revisions {
    /// The oldest.
    pub min: u8,
    /// The newest.
    pub max: u8,
}

/// A set whose revision is not what it was: somebody made it anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetChange {
    /// The set's name.
    pub set: String,
    /// The revision before.
    pub from: u8,
    /// The revision now.
    pub to: u8,
    /// When that was seen.
    pub at: Mono,
}

/// Which release of ipset(8), the tool and its library, brought which revision
/// of a set type (libipset/ipset_*.c of the releases): the release and the
/// revision, the oldest first.
type Releases = &'static [(ToolVersion, u8)];

const fn since(major: u16, minor: u16) -> ToolVersion {
    ToolVersion::two(major, minor)
}

/// The revisions of a type by release; none for types that are not known here.
fn releases(kind: &str) -> Option<Releases> {
    const V6_19: ToolVersion = since(6, 19);
    const V6_20: ToolVersion = since(6, 20);
    const V6_21: ToolVersion = since(6, 21);
    const V6_22: ToolVersion = since(6, 22);
    const V6_30: ToolVersion = since(6, 30);
    const V7_4: ToolVersion = since(7, 4);
    const V7_7: ToolVersion = since(7, 7);
    const V7_16: ToolVersion = since(7, 16);
    Some(match kind {
        "hash:ip" => &[(V6_19, 1), (V6_20, 2), (V6_21, 3), (V6_22, 4), (V7_7, 5), (V7_16, 6)],
        "hash:ip,port" => &[(V6_19, 2), (V6_20, 3), (V6_21, 4), (V6_22, 5), (V7_7, 6), (V7_16, 7)],
        "hash:ip,port,ip" => &[(V6_19, 2), (V6_20, 3), (V6_21, 4), (V6_22, 5), (V7_7, 6)],
        "hash:net" => &[(V6_19, 3), (V6_20, 4), (V6_21, 5), (V6_22, 6), (V7_7, 7)],
        "hash:net,port" | "hash:ip,port,net" => {
            &[(V6_19, 4), (V6_20, 5), (V6_21, 6), (V6_22, 7), (V7_7, 8)]
        }
        "hash:net,iface" => &[(V6_19, 3), (V6_20, 4), (V6_21, 5), (V6_22, 6), (V7_4, 7), (V7_7, 8)],
        "hash:net,net" => &[(V6_20, 0), (V6_21, 1), (V6_22, 2), (V7_7, 3), (V7_16, 4)],
        "hash:net,port,net" => &[(V6_20, 0), (V6_21, 1), (V6_22, 2), (V7_7, 3)],
        "hash:ip,mark" => &[(V6_21, 1), (V6_22, 2), (V7_7, 3)],
        "hash:mac" | "hash:ip,mac" => &[(V6_30, 0), (V7_7, 1)],
        "bitmap:ip" | "bitmap:ip,mac" | "bitmap:port" | "list:set" => {
            &[(V6_19, 1), (V6_20, 2), (V6_22, 3)]
        }
        _ => return None,
    })
}

impl ToolVersion {
    /// The newest revision of a set type that ipset(8) of this version reads,
    /// and the one that it makes sets with where the kernel has it. None where
    /// that is not known: another type, or an older release.
    #[must_use]
    pub fn newest_revision(self, kind: &str) -> Option<u8> {
        let (_, revision) = releases(kind)?.iter().rfind(|(release, _)| *release <= self)?;
        Some(*revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_knows_what_it_and_those_before_it_brought() {
        let newest = |version: &str, kind: &str| {
            version.parse::<ToolVersion>().unwrap().newest_revision(kind)
        };
        // The incident: calico-node's 7.11 before a set of 7.17.
        assert_eq!(newest("7.11", "hash:ip"), Some(5));
        assert_eq!(newest("7.15", "hash:ip"), Some(5));
        assert_eq!(newest("7.16", "hash:ip"), Some(6));
        assert_eq!(newest("7.17", "hash:ip"), Some(6));
        assert_eq!(newest("7.3", "hash:net,iface"), Some(6));
        assert_eq!(newest("7.24", "list:set"), Some(3));
        assert_eq!(newest("6.29", "hash:mac"), None);
        assert_eq!(newest("6.11", "hash:ip"), None);
        assert_eq!(newest("7.17", "hash:later"), None);
    }
}
