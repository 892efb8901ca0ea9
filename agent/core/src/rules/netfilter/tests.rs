//! Each code by a snapshot that raises it, and one that comes close.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::delta::Delta;
use crate::finding::Direction;
use crate::kernel::{DropForm, KernelCounts, PacketDrop, Traffic};
use crate::ladder::{Hop, Segment};
use crate::model::{
    AgentKind, Blocker, Cni, CniAgent, Committer, Controller, Encapsulation, Flood, Flushed,
    IfIndex, Illegible, LegacyTable, Link, LinkCounters, LinkKind, Matches, Origin, Peer, PeerId,
    PeerTunnel, Programmed, Readers, RuleAt, ToolProcess, ToolSpace, ToolVersion, Tools, Tunnel,
    Vxlan, tunnels,
};
use crate::time::{Mono, SECOND};

pub(super) const PEER: PeerId = PeerId(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)));
pub(super) const VXLAN: Encapsulation = Encapsulation::Vxlan(8472);

pub(super) fn fact<T>(value: T) -> Fact<Arc<T>> {
    Fact::Seen { value: Arc::new(value), at: Mono(1) }
}

fn flannel() -> Vec<Tunnel> {
    let vxlan = Vxlan { vni: 1, port: 8472, ..Vxlan::default() };
    let link = Link {
        index: IfIndex(3),
        name: "flannel.1".to_owned(),
        kind: LinkKind::Vxlan(vxlan),
        mac: None,
        mtu: 1450,
        admin_up: true,
        carrier: true,
        master: None,
        counters: LinkCounters::default(),
    };
    tunnels(&BTreeMap::from([(link.index, link)]), &[])
}

/// A node of flannel's shape with one peer, these tables, and these drops. Its
/// host has the iptables of Debian 12.
pub(super) fn node(netfilter: Netfilter, drops: Vec<PacketDrop>) -> Snapshot {
    let tunnel = PeerTunnel {
        index: IfIndex(3),
        device: "flannel.1".to_owned(),
        encapsulation: VXLAN,
        overlay: None,
        mac: None,
    };
    let peer = Peer {
        id: PEER,
        name: None,
        origin: Origin::Kernel,
        tunnels: vec![tunnel],
        pod_networks: Vec::new(),
        other_addresses: Vec::new(),
        departed_since: None,
    };
    let iptables = Some(ToolVersion::three(1, 8, 9));
    let host = ToolSpace { is_host: true, iptables, ..ToolSpace::default() };
    Snapshot {
        tools: fact(Tools { spaces: vec![host] }),
        netfilter: fact(netfilter),
        tunnels: fact(flannel()),
        kernel: fact(KernelCounts { drops, ..KernelCounts::default() }),
        peers: Arc::new(vec![peer]),
        ..Snapshot::default()
    }
}

pub(super) fn drop_of(form: DropForm, outbound: bool, reason: &str) -> PacketDrop {
    PacketDrop {
        site: DropSite {
            reason: Some(reason.to_owned()),
            function: Some("nft_do_chain".to_owned()),
            device: Some("eth0".to_owned()),
        },
        peer: Some(PEER),
        form,
        outbound,
        probe: None,
        ethertype: 0x0800,
        ip_protocol: 17,
        total: 40,
        lately: 40,
    }
}

pub(super) fn table(name: &str) -> NftTable {
    NftTable {
        family: Family::Ip,
        name: name.to_owned(),
        handle: 1,
        owner: None,
        chains: 3,
        rules: 4,
        base: Vec::new(),
        programmed: Vec::new(),
        entries: Vec::new(),
        blockers: Vec::new(),
        silencers: Vec::new(),
        barriers: Vec::new(),
        untracking: Vec::new(),
        illegible: Vec::new(),
        floods: Vec::new(),
    }
}

pub(super) fn at(chain: &str) -> RuleAt {
    RuleAt { chain: chain.to_owned(), handle: 12 }
}

pub(super) fn blocker(hook: ChainHook, port: u16) -> Blocker {
    let matches =
        Matches { protocol: Some(17), to_ports: Some((port, port)), ..Matches::default() };
    let (hooks, packets) = (vec![hook], Some(3));
    Blocker { at: at("X"), rejects: false, hooks, matches, packets, growth: None }
}

pub(super) fn base(name: &str, hook: ChainHook, drops: bool) -> BaseChain {
    BaseChain {
        name: name.to_owned(),
        handle: 2,
        kind: "filter".to_owned(),
        hook: Some(hook),
        priority: 0,
        drops,
        rules: 2,
    }
}

pub(super) fn of(tables: Vec<NftTable>) -> Netfilter {
    Netfilter { tables, ..Netfilter::default() }
}

pub(super) fn judged(snapshot: &Snapshot) -> Verdicts {
    let mut verdicts = Verdicts::default();
    let delta = Delta { before: None, now: snapshot };
    judge(&Context { delta, now: snapshot, digest: None }, &mut verdicts);
    verdicts
}

/// Code, name of the thing and handle-bearing text of each finding.
pub(super) fn said(snapshot: &Snapshot) -> Vec<(Code, String)> {
    let verdicts = judged(snapshot);
    assert!(verdicts.blind.is_empty());
    let name = |subject: &Subject| match subject {
        Subject::Thing { name, .. } => name.clone(),
        _ => "node".to_owned(),
    };
    verdicts.findings.iter().map(|finding| (finding.code, name(&finding.subject))).collect()
}

fn filtered_by(blockers: Vec<Blocker>, drop: PacketDrop) -> Vec<Finding> {
    let table = NftTable { blockers, ..table("local") };
    judged(&node(of(vec![table]), vec![drop])).findings
}

#[test]
fn a_rule_that_drops_the_tunnels_port_is_named_with_its_stretch() {
    let drop = drop_of(DropForm::Outer, true, "NETFILTER_DROP");
    let rules = vec![blocker(ChainHook::Output, 53), blocker(ChainHook::Output, 8472)];
    let found = filtered_by(rules, drop);
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert_eq!(finding.code, Code::EncapsulationFiltered);
    assert_eq!(finding.direction, Some(Direction::Outbound));
    assert_eq!(finding.hop, Some(Segment { from: Hop::Encapsulated, to: Hop::LeftNic }));
    let text = finding.evidence[0].to_string();
    assert!(text.contains("table ip local, chain X (hook output), handle 12"), "{text}");
    assert!(text.contains("udp dport 8472 drop"), "{text}");
    let words = finding.evidence[0].placeholders();
    assert!(words.contains(&("{handle}", "12".to_owned())), "{words:?}");
    let admit = words.iter().find(|(place, _)| *place == "{command to admit}").unwrap();
    assert!(admit.1.contains("`nft delete rule ip local X handle 12`"), "{admit:?}");
}

#[test]
fn a_drop_that_no_rule_fits_is_not_blamed_on_one() {
    let drop = || drop_of(DropForm::Outer, true, "NETFILTER_DROP");
    // Another port, another way, another reason, another kind of packet.
    assert_eq!(filtered_by(vec![blocker(ChainHook::Output, 53)], drop()), []);
    assert_eq!(filtered_by(vec![blocker(ChainHook::Input, 8472)], drop()), []);
    let fits = || vec![blocker(ChainHook::Output, 8472)];
    assert_eq!(filtered_by(fits(), drop_of(DropForm::Outer, true, "QDISC_DROP")), []);
    assert_eq!(filtered_by(fits(), drop_of(DropForm::Inner, true, "NETFILTER_DROP")), []);
    // A rule alone, which hits nothing.
    let table = NftTable { blockers: fits(), ..table("local") };
    assert_eq!(said(&node(of(vec![table]), Vec::new())), []);
}

#[test]
fn a_policy_is_suspected_after_rules_that_name_the_tunnel() {
    let drop = || drop_of(DropForm::Outer, false, "NETFILTER_DROP");
    let policy = NftTable { base: vec![base("in", ChainHook::Input, true)], ..table("host") };
    let found = said(&node(of(vec![policy.clone()]), vec![drop()]));
    assert_eq!(found, [(Code::EncapsulationFiltered, "ip host in".to_owned())]);
    let rule = NftTable { blockers: vec![blocker(ChainHook::Input, 8472)], ..table("local") };
    let found = said(&node(of(vec![policy, rule]), vec![drop()]));
    assert_eq!(found, [(Code::EncapsulationFiltered, "ip local X".to_owned())]);
}

#[test]
fn a_policy_that_forwards_nothing_is_named_where_live_traffic_dies() {
    let policy =
        || NftTable { base: vec![base("FORWARD", ChainHook::Forward, true)], ..table("filter") };
    let drop = || drop_of(DropForm::Inner, false, "NETFILTER_DROP");
    let broken = node(of(vec![policy()]), vec![drop()]);
    let expected = [(Code::ForwardPolicyDrop, "ip filter FORWARD".to_owned())];
    assert_eq!(said(&broken), expected);
    // It accepts by rules: nothing dies.
    assert_eq!(said(&node(of(vec![policy()]), Vec::new())), []);
    // A network policy drops some of it.
    let mut some = node(of(vec![policy()]), vec![drop()]);
    let traffic = Traffic {
        peer: PEER.0,
        encapsulation: VXLAN,
        outbound: false,
        packets: 900,
        bytes: 90_000,
        fragments: 0,
        lately: 900,
    };
    let counts =
        KernelCounts { drops: vec![drop()], traffic: vec![traffic], ..KernelCounts::default() };
    some.kernel = fact(counts);
    assert_eq!(said(&some), []);
    // A network policy may drop all of it; kube-proxy denies something everywhere.
    let denied_by = |by, denials| {
        let programmed = vec![Programmed { by, chains: 2, rules: 4, anchored: 1, denials }];
        said(&node(of(vec![NftTable { programmed, ..policy() }]), vec![drop()]))
    };
    for by in [Controller::Calico, Controller::KubeRouter, Controller::Cilium] {
        assert_eq!(denied_by(by, 1), [], "{by:?}");
        assert_eq!(denied_by(by, 0), expected, "{by:?}");
    }
    assert_eq!(denied_by(Controller::KubeProxy, 1), expected);
    // The policy is to accept.
    let accepts =
        NftTable { base: vec![base("FORWARD", ChainHook::Forward, false)], ..table("filter") };
    assert_eq!(said(&node(of(vec![accepts]), vec![drop()])), []);
}

/// As firewalld has it: the policy is to accept, and the last rule rejects everything.
fn firewalld() -> NftTable {
    let barrier = Blocker {
        at: at("filter_FORWARD"),
        rejects: true,
        hooks: vec![ChainHook::Forward],
        matches: Matches::default(),
        packets: None,
        growth: None,
    };
    NftTable {
        family: Family::Inet,
        base: vec![base("filter_FORWARD", ChainHook::Forward, false)],
        barriers: vec![barrier],
        ..table("firewalld")
    }
}

#[test]
fn a_rule_that_bars_everything_is_a_policy() {
    let drop = || drop_of(DropForm::Inner, false, "NETFILTER_DROP");
    let expected = [(Code::ForwardPolicyDrop, "inet firewalld filter_FORWARD".to_owned())];
    let broken = node(of(vec![firewalld()]), vec![drop()]);
    assert_eq!(said(&broken), expected);
    let [finding] = &judged(&broken).findings[..] else { panic!("one finding") };
    assert_eq!(finding.confidence, Confidence::High);
    let text = finding.evidence[0].to_string();
    let words = "table inet firewalld, chain filter_FORWARD (hook forward), handle 12: everything \
                 reject";
    assert!(text.contains(words), "{text}");
    // The zone of the pods accepts before: nothing dies, or not in netfilter.
    assert_eq!(said(&node(of(vec![firewalld()]), Vec::new())), []);
    let other = drop_of(DropForm::Inner, false, "QDISC_DROP");
    assert_eq!(said(&node(of(vec![firewalld()]), vec![other])), []);
    // It is about the other family.
    let mut of_v6 = firewalld();
    of_v6.barriers[0].matches.v6 = Some(true);
    assert_eq!(said(&node(of(vec![of_v6.clone()]), vec![drop()])), []);
    let v6 = PacketDrop { ethertype: 0x86dd, ..drop() };
    assert_eq!(said(&node(of(vec![of_v6]), vec![v6])), expected);
    // Network policies may be what drops.
    let by = Controller::Calico;
    let programmed = vec![Programmed { by, chains: 2, rules: 4, anchored: 1, denials: 1 }];
    let denies = NftTable { programmed, ..firewalld() };
    assert_eq!(said(&node(of(vec![denies]), vec![drop()])), []);
}

#[test]
fn several_ends_are_named_and_none_is_sure() {
    let policy =
        NftTable { base: vec![base("FORWARD", ChainHook::Forward, true)], ..table("filter") };
    let other = NftTable { family: Family::Ip6, ..policy.clone() };
    let drop = drop_of(DropForm::Inner, false, "NETFILTER_DROP");
    let both = node(of(vec![other, policy, firewalld()]), vec![drop]);
    let [finding] = &judged(&both).findings[..] else { panic!("one finding") };
    assert_eq!(finding.confidence, Confidence::Low);
    let named: Vec<_> = finding.evidence.iter().map(ToString::to_string).collect();
    assert_eq!(named.len(), 3, "{named:?}");
    assert!(named[0].starts_with("chain FORWARD of table ip filter"), "{named:?}");
    assert!(named[1].contains("inet firewalld"), "{named:?}");
}

#[test]
fn who_owns_a_table_and_what_a_policy_ends_are_said_with_it() {
    let drop = drop_of(DropForm::Outer, false, "NETFILTER_DROP");
    let base = vec![base("in", ChainHook::Input, true)];
    let owned = NftTable { base, owner: Some(811), ..table("host") };
    let [finding] = &judged(&node(of(vec![owned]), vec![drop])).findings[..] else {
        panic!("one finding")
    };
    let text = finding.evidence[0].to_string();
    assert!(text.ends_with("only netlink port 811 may change the table"), "{text}");
    let words = finding.evidence[0].placeholders();
    let admit = words.iter().find(|(place, _)| *place == "{command to admit}").unwrap();
    assert!(admit.1.contains("owns table ip host") && !admit.1.contains("nft insert"), "{admit:?}");
}

#[test]
fn what_iptables_cannot_read_is_told_from_what_it_misprints() {
    let rule = |readers| Illegible { at: at("FORWARD"), expression: "ct".to_owned(), readers };
    let with = |rules| NftTable { illegible: rules, ..table("filter") };
    let both = with(vec![rule(Readers::Nobody), rule(Readers::MisprintedFrom184)]);
    let name = || "ip filter".to_owned();
    // No agent uses the host's.
    assert_eq!(
        said(&node(of(vec![both]), Vec::new())),
        [(Code::NftTableUnreadableBySome, name()), (Code::NftRuleMisprinted, name())]
    );
    assert_eq!(said(&node(of(vec![with(Vec::new())]), Vec::new())), []);
    // As iptables itself writes a range of ports.
    assert_eq!(said(&node(of(vec![with(vec![rule(Readers::From188)])]), Vec::new())), []);
    // Nobody's tools read an inet table as iptables.
    let inet = NftTable { family: Family::Inet, ..with(vec![rule(Readers::Nobody)]) };
    assert_eq!(said(&node(of(vec![inet]), Vec::new())), []);
}

#[test]
fn only_base_chains_that_iptables_does_not_have_are_foreign() {
    let own = base("FORWARD", ChainHook::Forward, false);
    let late = BaseChain { priority: 10, ..base("late", ChainHook::Forward, false) };
    let chains = |base| NftTable { base, ..table("filter") };
    assert_eq!(
        said(&node(of(vec![chains(vec![own.clone(), late])]), Vec::new())),
        [(Code::ForeignBaseChain, "ip filter late".to_owned())]
    );
    assert_eq!(said(&node(of(vec![chains(vec![own])]), Vec::new())), []);
}

#[test]
fn backends_are_mixed_only_where_both_have_rules() {
    let mixed = |rules, v6| {
        let legacy = vec![LegacyTable { v6, name: "filter".to_owned(), rules }];
        let netfilter = Netfilter { tables: vec![table("nat")], legacy, ..Netfilter::default() };
        said(&node(netfilter, Vec::new()))
    };
    assert_eq!(mixed(Some(1), false), [(Code::IptablesBackendsMixed, "node".to_owned())]);
    assert_eq!(mixed(Some(0), false), []);
    assert_eq!(mixed(None, false), []);
    assert_eq!(mixed(Some(1), true), []);
}

#[test]
fn backends_that_are_hidden_are_not_judged() {
    let netfilter = Netfilter { legacy_is_hidden: true, ..Netfilter::default() };
    let now = node(netfilter, Vec::new());
    let mut verdicts = Verdicts::default();
    judge(
        &Context { delta: Delta { before: None, now: &now }, now: &now, digest: None },
        &mut verdicts,
    );
    assert_eq!(verdicts.blind, [Code::IptablesBackendsMixed]);
    assert_eq!(verdicts.findings, []);
}

#[test]
fn floods_and_flushes_are_told_with_their_numbers() {
    let flood = Flood { at: at("FORWARD"), times: 24, rules: 30 };
    let flooded = NftTable { floods: vec![flood], ..table("filter") };
    let by = Some(Committer { pid: 7, name: "nft".to_owned() });
    let gone = Flushed { of: Controller::Calico, chains: 4, rules: 9, at: Mono(1), by };
    let netfilter =
        Netfilter { tables: vec![flooded], flushed: vec![gone], ..Netfilter::default() };
    let mut snapshot = node(netfilter, Vec::new());
    assert_eq!(
        said(&snapshot),
        [
            (Code::RulesFlood, "ip filter FORWARD".to_owned()),
            (Code::FirewallFlushed, "calico".to_owned())
        ]
    );
    let texts: Vec<_> =
        judged(&snapshot).findings.iter().map(|f| f.evidence[0].to_string()).collect();
    assert!(texts[0].starts_with("24 of 30 rules in table ip filter, chain FORWARD"), "{texts:?}");
    assert!(texts[1].ends_with("removed by nft (pid 7)"), "{texts:?}");
    // What did not come back for so long was removed on purpose.
    snapshot.now.mono = Mono(1).plus(900 * SECOND);
    assert_eq!(said(&snapshot), [(Code::RulesFlood, "ip filter FORWARD".to_owned())]);
}

/// No tunnel, what no iptables reads, a flood, a foreign chain, both backends and a
/// flush.
fn without_a_tunnel() -> Snapshot {
    let rule = Illegible { at: at("X"), expression: "ct".to_owned(), readers: Readers::Nobody };
    let filter = NftTable {
        illegible: vec![rule],
        floods: vec![Flood { at: at("FORWARD"), times: 24, rules: 30 }],
        base: vec![BaseChain { priority: 10, ..base("late", ChainHook::Forward, false) }],
        ..table("filter")
    };
    let legacy = vec![LegacyTable { v6: false, name: "filter".to_owned(), rules: Some(1) }];
    let gone = Flushed { of: Controller::KubeProxy, chains: 4, rules: 9, at: Mono(1), by: None };
    let (tables, flushed) = (vec![filter], vec![gone]);
    let netfilter = Netfilter { tables, legacy, flushed, ..Netfilter::default() };
    let mut snapshot = node(netfilter, Vec::new());
    (snapshot.tunnels, snapshot.peers) = (fact(Vec::new()), Arc::new(Vec::new()));
    snapshot.cni = fact(Cni { running: Some(Vec::new()), ..Cni::default() });
    snapshot
}

/// All that is said of a node of a container network, whose agents are not seen to use
/// iptables-nft.
const OF_A_NODE: [Code; 5] = [
    Code::NftTableUnreadableBySome,
    Code::ForeignBaseChain,
    Code::RulesFlood,
    Code::IptablesBackendsMixed,
    Code::FirewallFlushed,
];

fn codes(snapshot: &Snapshot) -> Vec<Code> {
    said(snapshot).into_iter().map(|(code, _)| code).collect()
}

#[test]
fn a_machine_that_is_no_node_needs_no_iptables() {
    let mut plain = without_a_tunnel();
    assert_eq!(codes(&plain), []);
    let mut own = flannel();
    own[0].owner = Owner::Unknown;
    plain.tunnels = fact(own);
    assert_eq!(codes(&plain), [], "a tunnel of one's own making");
    plain.tools = fact(Tools { spaces: vec![space(&["docker", "nginx"])] });
    assert_eq!(codes(&plain), [], "programs of others");
    plain.tunnels = fact(flannel());
    assert_eq!(codes(&plain), OF_A_NODE);
}

fn space(names: &[&str]) -> ToolSpace {
    let process = |name: &&str| ToolProcess { pid: 70, name: (*name).to_owned() };
    let iptables = Some(ToolVersion::three(1, 8, 9));
    let processes = names.iter().map(process).collect();
    ToolSpace { processes, iptables, ..ToolSpace::default() }
}

#[test]
fn a_node_without_a_tunnel_is_known_by_its_agents_and_their_chains() {
    for name in ["kubelet", "k3s-agent", "calico-node", "cilium-agent", "flanneld"] {
        let mut by_agent = without_a_tunnel();
        let kind = AgentKind::of_process(name).unwrap();
        let agent = CniAgent { kind, name: name.to_owned(), pid: 70 };
        by_agent.cni = fact(Cni { running: Some(vec![agent]), ..Cni::default() });
        assert_eq!(codes(&by_agent), OF_A_NODE, "{name}");
    }
    let mut by_tools = without_a_tunnel();
    by_tools.tools = fact(Tools { spaces: vec![space(&["kube-proxy"])] });
    assert_eq!(codes(&by_tools), OF_A_NODE);
    for by in Controller::ALL {
        let mut by_chains = without_a_tunnel();
        let mut netfilter = (**by_chains.netfilter.seen().unwrap()).clone();
        netfilter.tables[0].programmed =
            vec![Programmed { by, chains: 1, rules: 0, anchored: 0, denials: 0 }];
        by_chains.netfilter = fact(netfilter);
        assert_eq!(codes(&by_chains), OF_A_NODE, "{by:?}");
    }
}

#[test]
fn where_agents_are_not_seen_what_they_need_is_not_judged() {
    let mut snapshot = without_a_tunnel();
    snapshot.tools = Fact::Missing(Gap::Denied);
    snapshot.cni = fact(Cni { running: None, ..Cni::default() });
    let verdicts = judged(&snapshot);
    assert_eq!((verdicts.findings, verdicts.blind), (Vec::new(), OF_TABLES.to_vec()));
    // Both are switched off.
    (snapshot.tools, snapshot.cni) = (Fact::Missing(Gap::Disabled), Fact::Missing(Gap::Disabled));
    assert_eq!(codes(&snapshot), []);
}

#[test]
fn without_the_tables_nothing_is_said_to_be_well() {
    let snapshot = Snapshot { netfilter: Fact::default(), ..node(of(Vec::new()), Vec::new()) };
    let verdicts = judged(&snapshot);
    assert_eq!(verdicts.findings, []);
    assert_eq!(verdicts.blind, CODES);
}
