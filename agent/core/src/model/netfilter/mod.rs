//! Netfilter as rules judge it: a bounded summary of the nftables ruleset, and
//! which tables of the older xtables are there beside it.
//!
//! Rules are not kept: a ruleset may have a hundred thousand. Kept is what can
//! decide a verdict, each list up to a limit that it states.

mod matches;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::ToolVersion;
use crate::time::{Mono, SECOND};

pub use matches::{Matches, Outer};

/// Base chains that are kept of one table.
pub const MOST_BASE_CHAINS: usize = 64;
/// Rules that are kept of one table because they drop.
pub const MOST_RULES: usize = 64;
/// Rules that are kept of one table for each kind of [`Readers`].
pub const MOST_ILLEGIBLE: usize = 16;
/// Chains in which a rule repeats that are kept of one table.
pub const MOST_FLOODS: usize = 16;
/// Tables that are kept.
pub const MOST_TABLES: usize = 256;
/// How often a rule must be in one chain to count as repeated.
pub const REPEATED: u32 = 16;
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

/// Whose packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// ARP.
    Arp,
    /// One device's.
    Netdev,
    /// Those of a bridge's ports.
    Bridge,
    /// IPv6.
    Ip6,
}

impl Family {
    /// The family of this number (`NFPROTO_...`, linux/netfilter.h); none for
    /// one that nftables has no tables of.
    #[must_use]
    pub const fn of_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Inet,
            2 => Self::Ip,
            3 => Self::Arp,
            5 => Self::Netdev,
            7 => Self::Bridge,
            10 => Self::Ip6,
            _ => return None,
        })
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Arp => 3,
            Self::Netdev => 5,
            Self::Bridge => 7,
            Self::Ip6 => 10,
        }
    }

    /// The name that nft(8) has for it.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Arp => "arp",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
            Self::Ip6 => "ip6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.slug())
    }
}

/// Where packets meet a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChainHook {
    /// As a device hands them over.
    Ingress,
    /// Before it is known whether they are for this host.
    Prerouting,
    /// On their way to this host's sockets and tunnels.
    Input,
    /// Between two devices.
    Forward,
    /// From this host's sockets and tunnels.
    Output,
    /// Before they leave.
    Postrouting,
    /// As a device is given them.
    Egress,
}

impl ChainHook {
    /// The hook of this number in a family (`NF_INET_...` and the like,
    /// linux/netfilter.h, netfilter_arp.h); none where there is no such hook.
    #[must_use]
    pub const fn of_number(family: Family, number: u32) -> Option<Self> {
        Some(match (family, number) {
            (Family::Netdev, 0) | (Family::Inet, 5) => Self::Ingress,
            (Family::Netdev, 1) => Self::Egress,
            (Family::Arp, 0) => Self::Input,
            (Family::Arp, 1) => Self::Output,
            (Family::Netdev | Family::Arp, _) => return None,
            (_, 0) => Self::Prerouting,
            (_, 1) => Self::Input,
            (_, 2) => Self::Forward,
            (_, 3) => Self::Output,
            (_, 4) => Self::Postrouting,
            _ => return None,
        })
    }

    /// The name that nft(8) has for it.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for ChainHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.slug())
    }
}

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
    /// Rules that drop or reject, and that the encapsulation of a tunnel may meet:
    /// the likeliest first, up to [`MOST_RULES`].
    pub blockers: Vec<Blocker>,
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

/// Who programs chains of these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Controller {
    /// kube-proxy: KUBE-SERVICES and what hangs on it.
    KubeProxy,
    /// kube-router, also as K3s' network policy: KUBE-ROUTER-*, KUBE-POD-FW-*, KUBE-NWPLCY-*.
    KubeRouter,
    /// Calico's Felix: cali-*.
    Calico,
    /// flannel: FLANNEL-*.
    Flannel,
    /// Cilium: CILIUM_*, and OLD_CILIUM_* while it replaces them.
    Cilium,
}

impl Controller {
    /// Whose chain this is, by its name.
    #[must_use]
    pub fn of_chain(name: &str) -> Option<Self> {
        let begins = |prefix: &str| name.starts_with(prefix);
        Some(if begins("cali-") {
            Self::Calico
        } else if begins("FLANNEL-") {
            Self::Flannel
        } else if begins("CILIUM_") || begins("OLD_CILIUM_") {
            Self::Cilium
        } else if ["KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-"].into_iter().any(begins) {
            Self::KubeRouter
        } else if begins("KUBE-") {
            Self::KubeProxy
        } else {
            return None;
        })
    }

    /// Whether a chain of this name is there, with rules in it, whenever its
    /// controller runs: services and pods come and go, these stay.
    #[must_use]
    pub fn is_anchor(name: &str) -> bool {
        // Cilium renames its chains, makes new ones, and then removes the old
        // (InstallRules, cilium pkg/datapath/iptables).
        let name = name.strip_prefix("OLD_").filter(|it| it.starts_with("CILIUM_")).unwrap_or(name);
        matches!(
            name,
            "KUBE-SERVICES"
                | "KUBE-FORWARD"
                | "KUBE-POSTROUTING"
                | "KUBE-ROUTER-INPUT"
                | "KUBE-ROUTER-FORWARD"
                | "KUBE-ROUTER-OUTPUT"
                | "cali-INPUT"
                | "cali-FORWARD"
                | "cali-OUTPUT"
                | "cali-PREROUTING"
                | "cali-POSTROUTING"
                | "FLANNEL-FWD"
                | "FLANNEL-POSTRTG"
                | "CILIUM_INPUT"
                | "CILIUM_FORWARD"
                | "CILIUM_OUTPUT"
                | "CILIUM_POST_nat"
        )
    }

    /// Whose own table this is: that of kube-proxy's nftables mode (`kubeProxyTable`,
    /// kubernetes pkg/proxy/nftables) and of Felix's nftables dataplane
    /// (felix/dataplane/linux), which take the place of their iptables chains.
    #[must_use]
    pub fn of_table(family: Family, name: &str) -> Option<Self> {
        match (family, name) {
            (Family::Ip | Family::Ip6, "kube-proxy") => Some(Self::KubeProxy),
            (Family::Ip | Family::Ip6, "calico") => Some(Self::Calico),
            _ => None,
        }
    }

    /// Its name as people say it.
    #[must_use]
    pub const fn slug(self) -> &'static str {
        match self {
            Self::KubeProxy => "kube-proxy",
            Self::KubeRouter => "kube-router",
            Self::Calico => "calico",
            Self::Flannel => "flannel",
            Self::Cilium => "cilium",
        }
    }
}

/// What one controller keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programmed {
    /// Who.
    pub by: Controller,
    /// Its chains.
    pub chains: u32,
    /// Rules in them.
    pub rules: u32,
    /// Rules in those that are there whenever it runs ([`Controller::is_anchor`]).
    pub anchored: u32,
    /// Rules in them that drop or reject.
    #[serde(default)]
    pub denials: u32,
}

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

    /// Whether a controller keeps its rules here, in chains of iptables or in a
    /// table of its own.
    fn is_programmed(&self, by: Controller) -> bool {
        let of_own = |table: &NftTable| {
            table.rules > 0 && Controller::of_table(table.family, &table.name) == Some(by)
        };
        self.programmed(by).anchored > 0 || self.tables.iter().any(of_own)
    }

    /// Carries over from `before` what was flushed and is still gone, and adds
    /// what went with the change that led here.
    pub fn compare(&mut self, before: &Self, at: Mono, by: Option<&Committer>) {
        let mut flushed = before.flushed.clone();
        flushed.retain(|one| !self.is_programmed(one.of) && !one.is_over(at));
        for of in [
            Controller::KubeProxy,
            Controller::KubeRouter,
            Controller::Calico,
            Controller::Flannel,
            Controller::Cilium,
        ] {
            let had = before.programmed(of);
            if had.anchored > 0 && !self.is_programmed(of) {
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
            blockers: Vec::new(),
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
    fn fewer_rules_are_no_flush() {
        let mut fewer = holding(1);
        fewer.compare(&holding(3), Mono(5), None);
        assert_eq!(fewer.flushed, []);
    }

    #[test]
    fn chains_are_known_by_their_names() {
        assert_eq!(Controller::of_chain("KUBE-ROUTER-INPUT"), Some(Controller::KubeRouter));
        assert_eq!(Controller::of_chain("KUBE-SVC-ABC"), Some(Controller::KubeProxy));
        assert_eq!(Controller::of_chain("OLD_CILIUM_INPUT"), Some(Controller::Cilium));
        assert_eq!(Controller::of_chain("DOCKER-USER"), None);
        assert!(Controller::is_anchor("OLD_CILIUM_INPUT"));
        assert!(!Controller::is_anchor("OLD_cali-INPUT"));
    }
}
