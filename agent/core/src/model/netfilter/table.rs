//! A table of nftables and its base chains.

use serde::{Deserialize, Serialize};

use crate::time::Mono;

use super::{Blocker, ChainHook, Family, Flood, Illegible, Programmed, RuleAt, Untracking};

/// Base chains that are kept of one table.
pub const MOST_BASE_CHAINS: usize = 64;
/// Rules that are kept of one table because they drop.
pub const MOST_RULES: usize = 64;
/// Rules that are kept of one table for each kind of [`Readers`](super::Readers).
pub const MOST_ILLEGIBLE: usize = 16;
/// Chains in which a rule repeats that are kept of one table.
pub const MOST_FLOODS: usize = 16;
/// Rules that lead into chains of kube-router that are kept of one table; it makes
/// one for each hook.
pub const MOST_ENTRIES: usize = 8;
/// Rules that are kept of one table for what they do to others than outer packets.
pub const MOST_ASIDE: usize = 16;
/// How often a rule must be in one chain to count as repeated.
pub const REPEATED: u32 = 16;

/// One nftables table, summed up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NftTable {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its handle.
    pub handle: u64,
    /// The netlink port of the program that alone may change it
    /// (NFT_TABLE_F_OWNER); as a rule that program's PID.
    pub owner: Option<u32>,
    /// Chains in it.
    pub chains: u32,
    /// Rules in it.
    pub rules: u32,
    /// Its base chains, up to [`MOST_BASE_CHAINS`].
    pub base: Vec<BaseChain>,
    /// What the programs of container networks keep in it.
    pub programmed: Vec<Programmed>,
    /// Rules of base chains that lead into chains of kube-router, up to
    /// [`MOST_ENTRIES`].
    #[serde(default)]
    pub entries: Vec<RuleAt>,
    /// Rules that drop or reject, and that the encapsulation of a tunnel may meet:
    /// the likeliest first, up to [`MOST_RULES`].
    pub blockers: Vec<Blocker>,
    /// Rules that drop or reject the errors that tell a sender that its packets are
    /// too big, up to [`MOST_ASIDE`].
    #[serde(default)]
    pub silencers: Vec<Blocker>,
    /// Rules that drop or reject whatever is forwarded and comes to them, also by
    /// jumps, up to [`MOST_ASIDE`]: the policy of a chain whose policy is to accept.
    /// Not those of controllers, whose chains are about pods of theirs.
    #[serde(default)]
    pub barriers: Vec<Blocker>,
    /// Rules that keep packets out of connection tracking, up to [`MOST_ASIDE`].
    #[serde(default)]
    pub untracking: Vec<Untracking>,
    /// Rules that not every iptables-nft can read, in tables that it reads: the
    /// worst first, of each kind the first up to [`MOST_ILLEGIBLE`]. Rules of base
    /// chains that iptables does not have are none: a version that does not refuse
    /// the table for such a chain skips it.
    pub illegible: Vec<Illegible>,
    /// Chains in which one rule repeats [`REPEATED`] times or more: the worst
    /// first, up to [`MOST_FLOODS`].
    pub floods: Vec<Flood>,
}

impl NftTable {
    /// "ip filter".
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} {}", self.family, self.name)
    }

    /// Goes on with what the counters of its rules said `before`, at `since`: to read
    /// a table is to look at them.
    pub fn count_on(&mut self, before: &Self, since: Mono, at: Mono) {
        for blocker in &mut self.blockers {
            let same = |old: &&Blocker| old.at == blocker.at;
            if let Some(packets) = blocker.packets
                && let Some(old) = before.blockers.iter().find(same)
            {
                (blocker.packets, blocker.growth) = (old.packets, old.growth);
                blocker.count(packets, since, at);
            }
        }
    }

    /// Whether iptables-nft reads it as one of its own: these five names of
    /// IPv4 and IPv6 (xtables_ipv4, iptables/nft.c).
    #[must_use]
    pub fn is_of_iptables(&self) -> bool {
        is_of_iptables(self.family, &self.name)
    }
}

/// Whether iptables-nft reads a table of this name as one of its own.
#[must_use]
pub fn is_of_iptables(family: Family, table: &str) -> bool {
    matches!(family, Family::Ip | Family::Ip6)
        && matches!(table, "raw" | "mangle" | "filter" | "nat" | "security")
}

/// A chain that packets come to by a hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseChain {
    /// Its name.
    pub name: String,
    /// Its handle.
    pub handle: u64,
    /// "filter", "nat" or "route".
    pub kind: String,
    /// Its hook; none for one that is not known here.
    pub hook: Option<ChainHook>,
    /// Lower ones go first.
    pub priority: i32,
    /// What no rule decides is dropped.
    pub drops: bool,
    /// Rules in it.
    pub rules: u32,
}

impl BaseChain {
    /// Whether iptables-nft has a chain of this name, type, hook and priority in
    /// the table (xtables_ipv4, iptables/nft.c).
    #[must_use]
    pub fn is_of_iptables(&self, table: &str) -> bool {
        use ChainHook::{Forward, Input, Output, Postrouting, Prerouting};
        let Some(hook) = self.hook else { return false };
        let name = match hook {
            Prerouting => "PREROUTING",
            Input => "INPUT",
            Forward => "FORWARD",
            Output => "OUTPUT",
            Postrouting => "POSTROUTING",
            ChainHook::Ingress | ChainHook::Egress => return false,
        };
        let (kind, priority) = match (table, hook) {
            ("filter", Input | Forward | Output) => ("filter", 0),
            ("nat", Prerouting | Output) => ("nat", -100),
            ("nat", Input | Postrouting) => ("nat", 100),
            ("mangle", Output) => ("route", -150),
            ("mangle", _) => ("filter", -150),
            ("raw", Prerouting | Output) => ("filter", -300),
            ("security", Input | Forward | Output) => ("filter", 50),
            _ => return false,
        };
        self.name == name && self.kind == kind && self.priority == priority
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Growth, Matches, RuleAt};
    use super::*;

    fn blocker(handle: u64, packets: Option<u64>) -> Blocker {
        let at = RuleAt { chain: "IN".to_owned(), handle };
        let hooks = vec![ChainHook::Input];
        let matches = Matches::default();
        Blocker { at, rejects: false, hooks, matches, packets, growth: None }
    }

    fn holding(blockers: Vec<Blocker>) -> NftTable {
        NftTable {
            family: Family::Ip,
            name: "filter".to_owned(),
            handle: 1,
            owner: None,
            chains: 1,
            rules: 1,
            base: Vec::new(),
            programmed: Vec::new(),
            entries: Vec::new(),
            blockers,
            silencers: Vec::new(),
            barriers: Vec::new(),
            untracking: Vec::new(),
            illegible: Vec::new(),
            floods: Vec::new(),
        }
    }

    #[test]
    fn counters_go_on_across_a_change_of_their_table() {
        let mut before = holding(vec![blocker(3, Some(10)), blocker(4, Some(7))]);
        assert!(!before.blockers[0].count(10, Mono(1), Mono(2)), "it stands still");
        assert_eq!(before.blockers[0].growth, None);
        let more = vec![blocker(3, Some(12)), blocker(4, Some(7)), blocker(5, Some(99))];
        let mut after = holding(more);
        after.count_on(&before, Mono(2), Mono(6));
        let growth = |table: &NftTable| table.blockers.iter().map(|b| b.growth).collect::<Vec<_>>();
        let grown = Some(Growth { packets: 2, since: Mono(2), at: Mono(6) });
        // Nobody knows what a new rule counted before.
        assert_eq!(growth(&after), [grown, None, None]);
        let mut last = holding(vec![blocker(3, Some(12)), blocker(4, None)]);
        last.count_on(&after, Mono(6), Mono(9));
        assert_eq!(growth(&last), [grown, None]);
        // iptables -Z
        assert!(!last.blockers[0].count(1, Mono(9), Mono(12)));
        assert!(last.blockers[0].count(4, Mono(12), Mono(15)));
        assert_eq!(last.blockers[0].growth.unwrap().packets, 3);
    }
}
