//! Each verdict by the readers that bring it about, and by those that do not.

use super::*;
use crate::fact::{Fact, Gap};
use crate::model::{ChainHook, LegacyTable, Programmed};
use crate::rules::netfilter::tests::{at, base, fact, judged, node, of, table};

fn rule(expression: &str, readers: Readers) -> Illegible {
    Illegible { at: at("FORWARD"), expression: expression.to_owned(), readers }
}

fn filter(rules: Vec<Illegible>) -> NftTable {
    NftTable { illegible: rules, ..table("filter") }
}

fn range() -> NftTable {
    filter(vec![rule("range", Readers::From188)])
}

fn foreign() -> NftTable {
    let late = BaseChain { priority: 10, ..base("late", ChainHook::Forward, false) };
    NftTable { base: vec![late], ..table("filter") }
}

fn host(iptables: &str) -> ToolSpace {
    ToolSpace { is_host: true, ..space(iptables, "kubelet") }
}

fn space(iptables: &str, process: &str) -> ToolSpace {
    ToolSpace {
        processes: vec![ToolProcess { pid: 77, name: process.to_owned() }],
        iptables: Some(iptables.parse().unwrap()),
        ..ToolSpace::default()
    }
}

fn found(table: NftTable, spaces: Vec<ToolSpace>) -> Vec<Finding> {
    found_in(of(vec![table]), spaces)
}

fn found_in(netfilter: Netfilter, spaces: Vec<ToolSpace>) -> Vec<Finding> {
    let tools = fact(Tools { spaces });
    let verdicts = judged(&Snapshot { tools, ..node(netfilter, Vec::new()) });
    assert_eq!(verdicts.blind, []);
    let own = |finding: &Finding| finding.code != Code::ForeignBaseChain;
    verdicts.findings.into_iter().filter(own).collect()
}

fn codes(table: NftTable, spaces: Vec<ToolSpace>) -> Vec<Code> {
    found(table, spaces).iter().map(|finding| finding.code).collect()
}

fn programmed(by: Controller, anchored: u32) -> Programmed {
    Programmed { by, chains: 4, rules: 9, anchored, denials: 0 }
}

fn text(finding: &Finding) -> String {
    let lines: Vec<_> = finding.evidence.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

#[test]
fn an_agents_older_reader_is_named_with_its_process() {
    let spaces = vec![host("1.8.9"), space("1.8.4", "calico-node")];
    let findings = found(range(), spaces);
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!(finding.code, Code::NftTableIncompatible);
    assert_eq!(
        text(finding),
        "rule in table ip filter, chain FORWARD, handle 12: expression range is unreadable \
         for iptables-nft before 1.8.8\n\
         iptables-nft 1.8.4 of calico-node (process 77) in a container cannot read table ip \
         filter: 1.8.8 is the first that can\n\
         the host's own iptables-nft is 1.8.9 and reads it, but a container does not use that \
         one"
    );
    assert!(finding.evidence[0].placeholders().contains(&("{handle}", "12".to_owned())));
}

#[test]
fn an_agent_on_the_host_uses_the_hosts() {
    let k3s = ToolSpace { is_host: true, ..space("1.8.7", "k3s-server") };
    let findings = found(range(), vec![host("1.8.7"), k3s]);
    assert_eq!(findings[0].code, Code::NftTableIncompatible);
    let text = text(&findings[0]);
    assert!(text.contains("1.8.7 of k3s-server (process 77) on the host cannot"), "{text}");
    assert!(text.contains("1.8.7 on the host, which no agent is known to use,"), "{text}");
    assert!(!text.contains("reads it"), "{text}");
}

#[test]
fn a_reader_that_nobody_uses_is_a_warning() {
    for spaces in [
        vec![host("1.8.7")],
        vec![host("1.8.9"), space("1.8.7", "nginx")],
        vec![space("1.8.8", "calico-node"), space("1.8.7", "nginx")],
    ] {
        let findings = found(range(), spaces);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].code, Code::NftTableUnreadableBySome);
        let text = text(&findings[0]);
        assert!(text.contains("iptables-nft 1.8.7"), "{text}");
        assert!(text.contains("which no agent is known to use"), "{text}");
    }
}

#[test]
fn what_all_installed_readers_read_is_well() {
    // As iptables itself writes a range of ports.
    for spaces in [
        vec![host("1.8.9"), space("1.8.8", "calico-node"), space("1.8.10", "kube-proxy")],
        vec![ToolSpace { iptables: None, ..space("1.8.4", "calico-node") }],
        Vec::new(),
    ] {
        assert_eq!(codes(range(), spaces), []);
    }
    assert_eq!(codes(foreign(), vec![space("1.8.8", "calico-node")]), []);
    assert_eq!(codes(filter(Vec::new()), vec![space("1.8.0", "calico-node")]), []);
}

#[test]
fn what_no_version_reads_is_lost_on_all_that_are_there() {
    let ct = || filter(vec![rule("ct", Readers::Nobody), rule("range", Readers::From188)]);
    let k3s = ToolSpace { is_host: true, ..space("1.8.9", "k3s-server") };
    for spaces in [vec![host("1.8.9"), k3s], vec![space("1.8.11", "kube-proxy")]] {
        let findings = found(ct(), spaces);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].code, Code::NftTableIncompatible);
        let text = text(&findings[0]);
        assert!(text.contains("expression ct"), "{text}");
        assert!(text.contains("nor can any other version"), "{text}");
        // What those that are there read is not blamed.
        assert!(!text.contains("expression range"), "{text}");
    }
    let findings = found(ct(), Vec::new());
    assert_eq!(findings[0].code, Code::NftTableUnreadableBySome);
    assert!(text(&findings[0]).contains("no iptables-nft was found"));
}

#[test]
fn what_no_version_reads_is_told_mildly_where_no_agent_reads() {
    let ct = || filter(vec![rule("ct", Readers::Nobody)]);
    for spaces in [vec![host("1.8.9")], vec![host("1.8.9"), space("1.8.9", "nginx")]] {
        let findings = found(ct(), spaces);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].code, Code::NftTableUnreadableBySome);
        assert!(text(&findings[0]).contains("which no agent is known to use"));
    }
    // An agent reads it with a tool whose version is not told.
    let unknown = || ToolSpace { iptables: None, ..space("1.8.9", "calico-node") };
    assert_eq!(codes(ct(), vec![host("1.8.9"), unknown()]), [Code::NftTableUnreadableBySome]);
    let kept = NftTable { programmed: vec![programmed(Controller::Calico, 3)], ..ct() };
    assert_eq!(codes(kept, vec![host("1.8.9"), unknown()]), [Code::NftTableIncompatible]);
}

#[test]
fn an_agent_with_a_table_of_its_own_reads_none_of_iptables() {
    let own = |name: &str, by| NftTable {
        programmed: vec![programmed(by, 0)],
        ..NftTable { name: name.to_owned(), ..table(name) }
    };
    let judged = |tables: Vec<NftTable>, process: &str| -> Vec<_> {
        let netfilter = of([vec![range()], tables].concat());
        let found = found_in(netfilter, vec![host("1.8.9"), space("1.8.4", process)]);
        found.iter().map(|one| (one.code, one.confidence)).collect()
    };
    let some = [(Code::NftTableUnreadableBySome, Confidence::Certain)];
    for (name, by, process) in [
        ("kube-proxy", Controller::KubeProxy, "kube-proxy"),
        ("calico", Controller::Calico, "calico-node"),
        ("flannel-ipv4", Controller::Flannel, "flanneld"),
    ] {
        assert_eq!(judged(vec![own(name, by)], process), some, "{name}");
        // The kubelet's KUBE-FIREWALL, and what an agent had before.
        let rest = NftTable { programmed: vec![programmed(by, 0)], ..table("nat") };
        assert_eq!(judged(vec![own(name, by), rest], process), some, "{name}");
    }
    // K3s keeps network policies in iptables, whatever its kube-proxy does.
    let policies =
        NftTable { programmed: vec![programmed(Controller::KubeRouter, 3)], ..table("mangle") };
    let proxy = own("kube-proxy", Controller::KubeProxy);
    let both = judged(vec![proxy, policies], "k3s-server");
    assert_eq!(both, [(Code::NftTableIncompatible, Confidence::Certain)]);
}

#[test]
fn where_legacy_tables_are_hidden_an_agent_without_chains_is_not_judged() {
    let judged = |table: NftTable, chains: u32, tool: &str| {
        let kept = NftTable { programmed: vec![programmed(Controller::Calico, chains)], ..table };
        let netfilter = Netfilter { legacy_is_hidden: true, ..of(vec![kept]) };
        let spaces = vec![host("1.8.9"), space(tool, "calico-node")];
        let tools = fact(Tools { spaces });
        let verdicts = judged(&Snapshot { tools, ..node(netfilter, Vec::new()) });
        let codes: Vec<_> = verdicts.findings.iter().map(|finding| finding.code).collect();
        let is_blind = verdicts.blind.contains(&Code::NftTableIncompatible);
        (codes, is_blind)
    };
    assert_eq!(judged(range(), 0, "1.8.4"), (vec![Code::NftTableUnreadableBySome], true));
    assert_eq!(judged(range(), 3, "1.8.4"), (vec![Code::NftTableIncompatible], false));
    // Whatever it uses, its own reads all.
    assert_eq!(judged(range(), 0, "1.8.8"), (vec![], false));
}

#[test]
fn a_reader_that_was_not_looked_at_is_not_known_to_read() {
    let blind = |table: NftTable, process: &str| {
        let unread = ToolSpace { is_unread: true, iptables: None, ..space("1.8.4", process) };
        let tools = fact(Tools { spaces: vec![host("1.8.9"), unread] });
        judged(&Snapshot { tools, ..node(of(vec![table]), Vec::new()) }).blind
    };
    let (some, misprinted) = (Code::NftTableUnreadableBySome, Code::NftRuleMisprinted);
    assert_eq!(blind(range(), "nginx"), [some, misprinted]);
    assert_eq!(blind(range(), "calico-node"), [some, misprinted, Code::NftTableIncompatible]);
    assert_eq!(blind(table("filter"), "calico-node"), []);
}

#[test]
fn a_foreign_base_chain_stops_those_before_1_8_8() {
    let agent = found(foreign(), vec![space("1.8.7", "kube-proxy")]);
    assert_eq!(agent[0].code, Code::NftTableIncompatible);
    assert!(text(&agent[0]).starts_with("chain late of table ip filter: type filter"));
    assert_eq!(codes(foreign(), vec![host("1.8.4")]), [Code::NftTableUnreadableBySome]);
    let inet = NftTable { family: Family::Inet, ..foreign() };
    assert_eq!(codes(inet, vec![space("1.8.7", "kube-proxy")]), []);
}

#[test]
fn a_lookup_is_refused_before_1_8_4_and_misprinted_since() {
    let lookup = || filter(vec![rule("lookup", Readers::MisprintedFrom184)]);
    let of = |spaces| codes(lookup(), spaces);
    assert_eq!(of(vec![space("1.8.3", "calico-node")]), [Code::NftTableIncompatible]);
    assert_eq!(of(vec![space("1.8.4", "calico-node")]), [Code::NftRuleMisprinted]);
    assert_eq!(of(Vec::new()), [Code::NftRuleMisprinted]);
    assert_eq!(
        of(vec![host("1.8.9"), space("1.8.2", "calico-node")]),
        [Code::NftTableIncompatible, Code::NftRuleMisprinted]
    );
}

#[test]
fn what_only_older_ones_misprint_is_told_where_one_is_installed() {
    let range = || filter(vec![rule("cmp", Readers::MisprintedBefore188)]);
    let findings = found(range(), vec![host("1.8.9"), space("1.8.7", "calico-node")]);
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!(finding.code, Code::NftRuleMisprinted);
    assert_eq!(
        text(finding),
        "rule in table ip filter, chain FORWARD, handle 12: expression cmp is not read by \
         iptables-nft before 1.8.8, which prints the rule without it\n\
         iptables-nft 1.8.7 of calico-node (process 77) in a container prints it so"
    );
    for spaces in [vec![host("1.8.9"), space("1.8.8", "calico-node")], Vec::new()] {
        assert_eq!(codes(range(), spaces), []);
    }
    assert_eq!(codes(range(), vec![host("1.8.4")]), [Code::NftRuleMisprinted]);
}

#[test]
fn a_mark_that_is_set_stops_those_of_today_and_is_misprinted_by_those_before() {
    let mark = || filter(vec![rule("meta", Readers::RefusedFrom189)]);
    assert_eq!(codes(mark(), vec![space("1.8.9", "calico-node")]), [Code::NftTableIncompatible]);
    assert_eq!(codes(mark(), vec![host("1.8.9")]), [Code::NftTableUnreadableBySome]);
    assert_eq!(codes(mark(), vec![space("1.8.7", "calico-node")]), [Code::NftRuleMisprinted]);
    // Nobody has seen what this one does.
    assert_eq!(codes(mark(), vec![host("1.8.8")]), []);
    let both = codes(mark(), vec![host("1.8.9"), space("1.8.7", "nginx")]);
    assert_eq!(both, [Code::NftTableUnreadableBySome, Code::NftRuleMisprinted]);
    assert_eq!(codes(mark(), Vec::new()), [Code::NftTableUnreadableBySome]);
}

#[test]
fn an_agent_whose_rules_are_legacy_ones_reads_no_nft_table() {
    let legacy = |v6| LegacyTable { v6, name: "filter".to_owned(), rules: Some(9) };
    let felix = || vec![host("1.8.9"), space("1.8.4", "calico-node")];
    let judged = |netfilter| {
        let findings = found_in(netfilter, felix());
        let own = findings.into_iter().find(|one| one.code != Code::IptablesBackendsMixed);
        own.map(|finding| (finding.code, finding.confidence))
    };
    let netfilter = |legacy| Netfilter { legacy, ..of(vec![range()]) };
    assert_eq!(
        judged(netfilter(vec![legacy(false)])),
        Some((Code::NftTableUnreadableBySome, Confidence::Certain))
    );
    assert_eq!(
        judged(netfilter(vec![legacy(true)])),
        Some((Code::NftTableIncompatible, Confidence::High))
    );
    // Its chains are seen to be in nftables.
    let own = NftTable { programmed: vec![programmed(Controller::Calico, 3)], ..range() };
    let both = Netfilter { legacy: vec![legacy(false)], ..of(vec![own]) };
    assert_eq!(judged(both), Some((Code::NftTableIncompatible, Confidence::Certain)));
}

#[test]
fn without_the_tools_any_version_counts() {
    let judged = |table, gap| {
        let tools = Fact::Missing(gap);
        let verdicts = judged(&Snapshot { tools, ..node(of(vec![table]), Vec::new()) });
        let codes = verdicts.findings.iter().map(|finding| finding.code).collect::<Vec<_>>();
        (codes, verdicts.blind)
    };
    let some = Code::NftTableUnreadableBySome;
    let ct = || filter(vec![rule("ct", Readers::Nobody)]);
    let kept = |table| NftTable { programmed: vec![programmed(Controller::Calico, 3)], ..table };
    for gap in [Gap::Denied, Gap::Disabled] {
        assert_eq!(judged(kept(ct()), gap), (vec![Code::NftTableIncompatible], vec![some]));
    }
    // Nobody who reads it is seen; an agent may be stopped by it all the same.
    let undecided = vec![some, Code::NftTableIncompatible];
    assert_eq!(judged(ct(), Gap::Denied), (vec![some], undecided));
    assert_eq!(judged(ct(), Gap::Disabled), (vec![some], vec![some]));
    // An agent may be stopped by what others read: nobody knows.
    let undecided = vec![some, Code::NftTableIncompatible];
    assert_eq!(judged(range(), Gap::Denied), (vec![], undecided));
    assert_eq!(judged(range(), Gap::Disabled), (vec![], vec![some]));
    assert_eq!(judged(filter(Vec::new()), Gap::Denied), (vec![], vec![some]));
}
