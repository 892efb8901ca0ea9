//! Netfilter as rules judge it: a bounded summary of the nftables ruleset, and
//! which tables of the older xtables are there beside it.
//!
//! Rules are not kept: a ruleset may have a hundred thousand. Kept is what can
//! decide a verdict, each list up to a limit that it states.

mod controller;
mod hook;
mod matches;
mod rule;
mod table;

use serde::{Deserialize, Serialize};

use crate::time::{Mono, SECOND};

pub use controller::{Controller, Programmed};
pub use hook::{ChainHook, Family};
pub use matches::{Matches, Outer};
pub use rule::{
    Blocker, Flood, Growth, Illegible, Readers, RuleAt, SKIPS_FOREIGN_CHAINS, Untracking,
};
pub use table::{
    BaseChain, MOST_ASIDE, MOST_BASE_CHAINS, MOST_ENTRIES, MOST_FLOODS, MOST_ILLEGIBLE, MOST_RULES,
    NftTable, REPEATED, is_of_iptables,
};

/// Tables that are kept.
pub const MOST_TABLES: usize = 256;
/// How long rules that were flushed are missed. By then whoever runs has
/// programmed its chains again (by default kube-proxy, kube-router and Felix do so
/// every five minutes or more often), and what did not come back was removed on
/// purpose: another plugin, another mode of kube-proxy, no policies any more.
const MISSED_NS: u64 = 900 * SECOND;

/// Netfilter of one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netfilter {
    /// The generation of the nftables ruleset: counts its transactions
    /// (nf_tables_commit, net/netfilter/nf_tables_api.c).
    pub generation: u32,
    /// nftables tables, in order of family and name.
    pub tables: Vec<NftTable>,
    /// Tables of the older xtables that are there.
    pub legacy: Vec<LegacyTable>,
    /// The kernel does not tell which of them are there.
    #[serde(default)]
    pub legacy_is_hidden: bool,
    /// Rulesets of controllers that were removed and have not come back.
    pub flushed: Vec<Flushed>,
}

/// A table of the older xtables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyTable {
    /// Of IPv6.
    pub v6: bool,
    /// Its name.
    pub name: String,
    /// Rules in it, without what each table begins with; none where the kernel
    /// does not tell.
    pub rules: Option<u32>,
}

/// Who made a change, as the kernel's notification says (NFTA_GEN_PROC_...).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committer {
    /// Its process.
    pub pid: u32,
    /// The process's name, at most 15 bytes (comm in proc(5)).
    pub name: String,
}

/// A controller's rules that went all at once and have not come back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// Whose.
    pub of: Controller,
    /// Chains that it had.
    pub chains: u32,
    /// Rules that it had.
    pub rules: u32,
    /// When that was noticed.
    pub at: Mono,
    /// Who made the change; none when it was not told.
    pub by: Option<Committer>,
}

impl Flushed {
    /// Whether nobody misses it any more at this time.
    #[must_use]
    pub fn is_over(&self, now: Mono) -> bool {
        now.since(self.at) >= MISSED_NS
    }
}

impl Netfilter {
    /// What one controller keeps in all tables together.
    #[must_use]
    pub fn programmed(&self, by: Controller) -> Programmed {
        let parts = self.tables.iter().flat_map(|table| &table.programmed);
        let none = Programmed { by, chains: 0, rules: 0, anchored: 0, denials: 0 };
        parts.filter(|part| part.by == by).fold(none, |sum, part| Programmed {
            by,
            chains: sum.chains.saturating_add(part.chains),
            rules: sum.rules.saturating_add(part.rules),
            anchored: sum.anchored.saturating_add(part.anchored),
            denials: sum.denials.saturating_add(part.denials),
        })
    }

    /// Whether rules are here that deny pods what a network policy does not allow.
    /// Not kube-proxy's, which drop what is invalid wherever it runs, and reject
    /// what is sent to services without endpoints.
    #[must_use]
    pub fn denies_by_policy(&self) -> bool {
        [Controller::KubeRouter, Controller::Calico, Controller::Cilium]
            .into_iter()
            .any(|by| self.programmed(by).denials > 0)
    }

    /// Whether a controller keeps its rules in tables that iptables-nft reads: those
    /// that are there whenever it runs, since the kubelet makes chains whose names
    /// begin as kube-proxy's do.
    #[must_use]
    pub fn is_in_iptables(&self, by: Controller) -> bool {
        let tables = self.tables.iter().filter(|table| table.is_of_iptables());
        tables.flat_map(|table| &table.programmed).any(|part| part.by == by && part.anchored > 0)
    }

    /// Whether a controller keeps its rules in a table of its own, which is no
    /// business of iptables.
    #[must_use]
    pub fn has_own_table(&self, by: Controller) -> bool {
        self.tables.iter().any(|table| {
            table.rules > 0 && Controller::of_table(table.family, &table.name) == Some(by)
        })
    }

    /// Whether a controller keeps its rules here, in chains of iptables or in a
    /// table of its own.
    fn is_programmed(&self, by: Controller) -> bool {
        self.programmed(by).anchored > 0 || self.has_own_table(by)
    }

    /// Carries over from `before` what was flushed and is still gone, and adds
    /// what went with the change that led here.
    pub fn compare(&mut self, before: &Self, at: Mono, by: Option<&Committer>) {
        let mut flushed = before.flushed.clone();
        flushed.retain(|one| !self.is_programmed(one.of) && !one.is_over(at));
        for of in Controller::ALL {
            if before.is_programmed(of) && !self.is_programmed(of) {
                let had = before.programmed(of);
                let (chains, rules, by) = (had.chains, had.rules, by.cloned());
                flushed.push(Flushed { of, chains, rules, at, by });
            }
        }
        self.flushed = flushed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(anchored: u32) -> Netfilter {
        let calico =
            Programmed { by: Controller::Calico, chains: 4, rules: 9, anchored, denials: 0 };
        let table = NftTable {
            family: Family::Ip,
            name: "filter".to_owned(),
            handle: 1,
            owner: None,
            chains: 4,
            rules: 9,
            base: Vec::new(),
            programmed: vec![calico],
            entries: Vec::new(),
            blockers: Vec::new(),
            silencers: Vec::new(),
            barriers: Vec::new(),
            untracking: Vec::new(),
            illegible: Vec::new(),
            floods: Vec::new(),
        };
        Netfilter { tables: vec![table], ..Netfilter::default() }
    }

    #[test]
    fn what_is_flushed_is_remembered_until_it_is_back() {
        let by = Committer { pid: 7, name: "nft".to_owned() };
        let (whole, mut empty) = (holding(3), holding(0));
        empty.compare(&whole, Mono(5), Some(&by));
        let expected = Flushed {
            of: Controller::Calico,
            chains: 4,
            rules: 9,
            at: Mono(5),
            by: Some(by.clone()),
        };
        assert_eq!(empty.flushed, std::slice::from_ref(&expected));
        let mut still = holding(0);
        still.compare(&empty, Mono(9), None);
        assert_eq!(still.flushed, [expected]);
        let mut back = holding(1);
        back.compare(&still, Mono(12), None);
        assert_eq!(back.flushed, []);
    }

    #[test]
    fn what_is_flushed_is_missed_for_a_while() {
        let (mut empty, mut still) = (holding(0), holding(0));
        empty.compare(&holding(3), Mono(5), None);
        assert!(!empty.flushed[0].is_over(Mono(5 + MISSED_NS - 1)));
        assert!(empty.flushed[0].is_over(Mono(5 + MISSED_NS)));
        still.compare(&empty, Mono(5 + MISSED_NS), None);
        assert_eq!(still.flushed, []);
    }

    #[test]
    fn a_table_of_its_own_takes_the_place_of_its_chains() {
        let moved = |family, name: &str| {
            let mut moved = holding(0);
            let own = NftTable { family, name: name.to_owned(), ..moved.tables[0].clone() };
            moved.tables.push(own);
            moved
        };
        // Before the chains are removed, and after.
        let mut at_once = moved(Family::Ip, "calico");
        at_once.compare(&holding(3), Mono(5), None);
        assert_eq!(at_once.flushed, []);
        let (mut empty, mut later) = (holding(0), moved(Family::Ip, "calico"));
        empty.compare(&holding(3), Mono(5), None);
        assert_eq!(empty.flushed.len(), 1);
        later.compare(&empty, Mono(9), None);
        assert_eq!(later.flushed, []);
        // Another's, and an empty one.
        let mut others = moved(Family::Ip, "kube-proxy");
        others.compare(&holding(3), Mono(5), None);
        assert_eq!(others.flushed.len(), 1);
        let mut hollow = moved(Family::Ip, "calico");
        hollow.tables[1].rules = 0;
        hollow.compare(&holding(3), Mono(5), None);
        assert_eq!(hollow.flushed.len(), 1);
    }

    #[test]
    fn a_table_of_its_own_that_is_flushed_is_missed_too() {
        for (of, family, name) in [
            (Controller::KubeProxy, Family::Ip, "kube-proxy"),
            (Controller::Calico, Family::Ip6, "calico"),
            (Controller::Flannel, Family::Ip, "flannel-ipv4"),
            (Controller::Flannel, Family::Ip6, "flannel-ipv6"),
        ] {
            let mut own = holding(0);
            own.tables[0].family = family;
            name.clone_into(&mut own.tables[0].name);
            own.tables[0].programmed[0].by = of;
            let mut empty = Netfilter::default();
            empty.compare(&own, Mono(5), None);
            let gone: Vec<_> = empty.flushed.iter().map(|one| (one.of, one.rules)).collect();
            assert_eq!(gone, [(of, 9)]);
            // Without rules it was no more than a name.
            own.tables[0].rules = 0;
            let mut empty = Netfilter::default();
            empty.compare(&own, Mono(5), None);
            assert_eq!(empty.flushed, []);
        }
        // flannel that goes over to nftables.
        let mut chains = holding(3);
        chains.tables[0].programmed[0].by = Controller::Flannel;
        let mut moved = holding(0);
        "flannel-ipv4".clone_into(&mut moved.tables[0].name);
        moved.compare(&chains, Mono(5), None);
        assert_eq!(moved.flushed, []);
    }

    #[test]
    fn only_what_stands_in_tables_of_iptables_is_in_iptables() {
        let mut kept = holding(3);
        assert!(kept.is_in_iptables(Controller::Calico));
        assert!(!kept.is_in_iptables(Controller::KubeProxy));
        "calico".clone_into(&mut kept.tables[0].name);
        assert!(!kept.is_in_iptables(Controller::Calico));
        assert!(kept.has_own_table(Controller::Calico));
        // As the kubelet's KUBE-FIREWALL.
        assert!(!holding(0).is_in_iptables(Controller::Calico));
    }

    #[test]
    fn fewer_rules_are_no_flush() {
        let mut fewer = holding(1);
        fewer.compare(&holding(3), Mono(5), None);
        assert_eq!(fewer.flushed, []);
    }
}
