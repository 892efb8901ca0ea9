//! What each kernel must have, and what it must lack: both are checked, since
//! a gap that closed by itself means that the table, or the product, is wrong.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::kernels::Version;

/// Something that kernels have since a version.
#[derive(Debug)]
pub(crate) struct Feature {
    /// Its name, as `lab features` prints it.
    pub(crate) name: &'static str,
    /// The first version that has it.
    pub(crate) since: Version,
}

const fn since(name: &'static str, first: u16, second: u16, third: u16) -> Feature {
    Feature { name, since: Version(first, second, third) }
}

/// All features that are looked for.
pub(crate) const FEATURES: [Feature; 8] = [
    // Older than the oldest kernel here: no gap is expected anywhere.
    since("ipip", 0, 0, 0),
    since("netem", 0, 0, 0),
    since("wireguard", 5, 6, 0),
    since("types", 5, 4, 0),
    // The tracepoint's reason (include/trace/events/skb.h).
    since("drop-reasons", 5, 17, 0),
    // net/netfilter/ipset/ip_set_hash_ip.c, revision 6.
    since("ipset-bitmask", 6, 2, 0),
    // kernel/bpf/tcx.c.
    since("tcx", 6, 6, 0),
    // drivers/net/vxlan/vxlan_core.c; in a stable release of 6.12.
    since("vxlan-drop-reasons", 6, 12, 46),
];

/// What `lab features` found in a guest.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Found {
    pub(crate) release: String,
    pub(crate) has: BTreeMap<String, bool>,
    /// What agents could not see on healthy nodes.
    pub(crate) gaps: BTreeSet<String>,
}

impl Found {
    /// Features that this kernel lacks as it must.
    pub(crate) fn expected_gaps(&self) -> Vec<&'static str> {
        let lacks = |feature: &&Feature| {
            self.has.get(feature.name) == Some(&false) && self.must_have(feature) == Some(false)
        };
        FEATURES.iter().filter(lacks).map(|feature| feature.name).collect()
    }

    /// Whether a kernel of this version has a feature; none when the version
    /// cannot be read.
    fn must_have(&self, feature: &Feature) -> Option<bool> {
        Version::of(&self.release).map(|version| version >= feature.since)
    }

    /// Everything that is not as the table says.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems: Vec<_> = FEATURES
            .iter()
            .filter_map(|feature| {
                let (name, since) = (feature.name, feature.since);
                match (self.has.get(name), self.must_have(feature)) {
                    (Some(true), Some(true)) | (Some(false), Some(false)) => None,
                    (Some(true), Some(false)) => {
                        Some(format!("has {name}, which is expected since {since} only"))
                    }
                    (Some(false), Some(true)) => {
                        Some(format!("lacks {name}, which is expected since {since}"))
                    }
                    (None, _) => Some(format!("nobody looked for {name}")),
                    (_, None) => Some(format!("{} is no version", self.release)),
                }
            })
            .collect();
        let known = |name: &str| FEATURES.iter().any(|feature| feature.name == name);
        let unknown = self.has.keys().filter(|name| !known(name));
        problems.extend(unknown.map(|name| format!("{name} is not in the table of features")));
        problems.extend(self.gaps.iter().map(|gap| format!("agents do not see all: {gap}")));
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(release: &str, lacks: &[&str]) -> Found {
        let has = FEATURES
            .iter()
            .map(|feature| (feature.name.to_owned(), !lacks.contains(&feature.name)))
            .collect();
        Found { release: release.to_owned(), has, gaps: BTreeSet::new() }
    }

    #[test]
    fn what_is_as_the_table_says_is_no_problem() {
        let old = found("6.1.0-50-cloud-amd64", &["tcx", "vxlan-drop-reasons", "ipset-bitmask"]);
        assert_eq!(old.problems(), Vec::<String>::new());
        assert_eq!(old.expected_gaps(), ["ipset-bitmask", "tcx", "vxlan-drop-reasons"]);
        assert!(found("7.2.13+deb14-cloud-amd64", &[]).problems().is_empty());
    }

    #[test]
    fn both_ways_of_being_wrong_are_told() {
        let lacking = found("7.2.13+deb14-cloud-amd64", &["tcx"]);
        assert_eq!(lacking.problems(), ["lacks tcx, which is expected since 6.6"]);
        assert!(lacking.expected_gaps().is_empty());
        let having = found("6.1.0-50-cloud-amd64", &["vxlan-drop-reasons", "ipset-bitmask"]);
        assert_eq!(having.problems(), ["has tcx, which is expected since 6.6 only"]);
    }

    #[test]
    fn what_was_not_looked_for_is_told() {
        let mut found = found("7.2.13", &[]);
        found.has.remove("ipip");
        found.has.insert("other".to_owned(), true);
        found.gaps.insert("nftables: denied".to_owned());
        assert_eq!(found.problems().len(), 3);
    }
}
