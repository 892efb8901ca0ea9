//! IP sets that a tool in use cannot read, and sets that are full.
//!
//! Who made a set with a revision that is too new is evidence and no finding of
//! its own: it harms nobody but the reader, and a plugin that upgrades its own
//! sets does the same.

use std::collections::BTreeSet;

use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::finding::{Confidence, Evidence, Finding, SetEvidence, Subject, Thing};
use crate::model::{
    Controller, IpSet, IpSets, Service, ToolProcess, ToolSpace, ToolVersion, Tools,
};

/// Felix, Calico's agent: it fails on a set of its own that its ipset cannot read
/// (calico#11051); up to 3.27.0 also on others' sets, which it listed with its
/// own (calico#8387).
const FELIX: &str = "calico-node";
/// The iptables of images that are later (Calico 3.30; 3.27.0 has 1.8.4).
const IPTABLES_SINCE: ToolVersion = ToolVersion::three(1, 8, 8);
/// How Felix names its own sets (`IPVersionConfig`, felix/ipsets).
const FELIX_OWN: &str = "cali";
/// Others that read all sets (`ipset save`): kube-router's network policy
/// controller, Weave's.
const SAVERS: [&str; 2] = [KUBE_ROUTER, WEAVE];
/// K3s, which has kube-router's controller within it, by its processes.
const K3S: [&str; 3] = ["k3s", "k3s-server", "k3s-agent"];
/// All of them.
const SAVERS_AND_K3S: [&str; 5] = [KUBE_ROUTER, WEAVE, K3S[0], K3S[1], K3S[2]];
const KUBE_ROUTER: &str = "kube-router";
const WEAVE: &str = "weave-npc";
/// How those who keep sets for pods and services name them: Felix (of old
/// releases, too), kube-proxy, kube-router, Cilium, Weave, Antrea.
const CONTROLLERS: [&str; 9] = [
    FELIX_OWN,
    "felix-",
    "KUBE-",
    "TMP-",
    "kube-router-",
    "CILIUM_",
    "cilium_",
    "weave-",
    "ANTREA-",
];
/// What kube-router puts before the names of its sets of IPv6 addresses.
const OF_IPV6: &str = "inet6:";

/// Readers that one finding tells of.
const MOST_READERS: usize = 4;
/// Sets that one sentence names.
const MOST_NAMES: usize = 8;
/// Full sets that are told of.
const MOST_FULL: usize = 16;
/// Below this many members a set may have been made for exactly what is in it.
const LEAST_CAPACITY: u32 = 64;
/// A set is nearly full with so many per cent of what fits.
const NEARLY_PERCENT: u64 = 95;

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let sets = context.now.ipsets.seen();
    match sets {
        Some(sets) => fullness(sets, verdicts),
        None => verdicts.blind(&[Code::IpsetFull, Code::IpsetNearlyFull]),
    }
    let (Some(sets), Some(tools)) = (sets, context.now.tools.seen()) else {
        return verdicts.blind(&[Code::IpsetReaderTooOld, Code::IpsetReaderBehind]);
    };
    let has_policies = k3s_has_policies(context, sets);
    let savers = if has_policies == Some(true) { &SAVERS_AND_K3S[..] } else { &SAVERS[..] };
    let runs = |process: &ToolProcess| K3S.contains(&process.name.as_str());
    if has_policies.is_none() && tools.spaces.iter().flat_map(|it| &it.processes).any(runs) {
        verdicts.blind(&[Code::IpsetReaderBehind]);
    }
    let all = Known { sets, tools, savers };
    readers(Code::IpsetReaderTooOld, &[FELIX], felix_reads(context), all, verdicts);
    readers(Code::IpsetReaderBehind, savers, |_, _| true, all, verdicts);
}

/// What there is, and who makes use of it.
#[derive(Clone, Copy)]
struct Known<'a> {
    sets: &'a IpSets,
    tools: &'a Tools,
    /// Who reads all sets.
    savers: &'a [&'static str],
}

/// Whether K3s runs kube-router's network policy controller, where that matters:
/// `--disable-network-policy` is an argument, and K3s hides those. The controller
/// makes its chains when it starts, and its sets with the first policy. None where
/// nobody can tell. (Of chains of legacy xtables nothing is read.)
fn k3s_has_policies(context: &Context<'_>, sets: &IpSets) -> Option<bool> {
    if sets.sets.iter().any(IpSet::is_of_kube_router) {
        return Some(true);
    }
    let netfilter = context.now.netfilter.seen()?;
    Some(netfilter.programmed(Controller::KubeRouter).chains > 0)
}

/// The sets that Felix fails on: its own, and those of others only in releases up
/// to 3.27.0. All of these carry the same ipset as later ones, and the iptables
/// beside it excludes but some. So others' sets count only while Felix says of
/// itself that it is not ready, as it does then.
fn felix_reads(context: &Context<'_>) -> impl Fn(&ToolSpace, &IpSet) -> bool {
    let services = context.now.services.seen();
    let is_ailing = services.is_some_and(|all| {
        all.iter().any(|it| it.service == Service::Felix && it.ailing_since.is_some())
    });
    move |space, set| {
        let is_later = space.iptables.is_some_and(|tool| tool >= IPTABLES_SINCE);
        set.name.starts_with(FELIX_OWN) || is_ailing && !is_later
    }
}

/// A process that reads all sets with a tool that cannot read all of them.
struct Reader<'a> {
    space: &'a ToolSpace,
    process: &'a ToolProcess,
    tool: ToolVersion,
    /// The sets that it cannot read.
    sets: Vec<(&'a IpSet, u8)>,
}

fn readers(
    code: Code,
    names: &[&str],
    reads: impl Fn(&ToolSpace, &IpSet) -> bool,
    all: Known<'_>,
    verdicts: &mut Verdicts,
) {
    let Known { sets, tools, .. } = all;
    let is_one = |process: &ToolProcess| names.contains(&process.name.as_str());
    if tools.spaces.iter().any(|space| space.is_unread && space.processes.iter().any(is_one)) {
        verdicts.blind(&[code]);
    }
    let found: Vec<_> =
        tools.spaces.iter().filter_map(|space| reader(space, names, &reads, sets)).collect();
    let Some((first, _)) = found.iter().find_map(|reader| reader.sets.first()) else { return };
    let mut evidence = Vec::new();
    for reader in found.iter().take(MOST_READERS) {
        evidence.extend(unreadable(reader));
    }
    if found.iter().any(|reader| !reader.space.is_host) {
        let host = tools.spaces.iter().find(|space| space.is_host);
        let tool = host.and_then(|host| host.ipset);
        evidence.push(SetEvidence::HostTool { tool });
    }
    let beyond: BTreeSet<_> = found
        .iter()
        .flat_map(|reader| reader.sets.iter().map(|(set, _)| set.name.as_str()))
        .collect();
    let raised = sets.changes.iter().rev().find(|change| beyond.contains(change.set.as_str()));
    evidence.extend(raised.map(|change| SetEvidence::MadeAnew {
        set: change.set.clone(),
        from: change.from,
        to: change.to,
    }));
    evidence.extend(writer(first, all));
    let foreign: Vec<_> = sets.sets.iter().filter(|set| set.is_of_kube_router()).collect();
    if let Some(first) = foreign.first() {
        let count = u32::try_from(foreign.len()).unwrap_or(u32::MAX);
        evidence.push(SetEvidence::KubeRouter { count, name: first.name.clone() });
    }
    verdicts.add(Finding {
        code,
        subject: Subject::Thing { what: Thing::Set, name: first.name.clone() },
        direction: None,
        hop: None,
        evidence: evidence.into_iter().map(Evidence::Set).collect(),
        confidence: Confidence::Certain,
    });
}

/// The reader of this space, if one of `names` runs there and cannot read a set.
fn reader<'a>(
    space: &'a ToolSpace,
    names: &[&str],
    reads: impl Fn(&ToolSpace, &IpSet) -> bool,
    sets: &'a IpSets,
) -> Option<Reader<'a>> {
    let tool = space.ipset?;
    let process = space.processes.iter().find(|process| names.contains(&process.name.as_str()))?;
    let mut sets: Vec<_> = sets
        .sets
        .iter()
        .filter_map(|set| Some((set, tool.newest_revision(&set.kind)?)))
        .filter(|(set, newest)| set.revision > *newest)
        .collect();
    // Those that it reads before those that it only could not, and its own before
    // those that the writer made for itself.
    sets.sort_by_key(|(set, _)| (!reads(space, set), set.is_of_kube_router()));
    sets.first().is_some_and(|(set, _)| reads(space, set)).then_some(Reader {
        space,
        process,
        tool,
        sets,
    })
}

fn unreadable(reader: &Reader<'_>) -> Option<SetEvidence> {
    let (set, newest) = reader.sets.first()?;
    let others = reader.sets.iter().skip(1).map(|(set, _)| set.name.clone());
    Some(SetEvidence::Beyond {
        set: set.name.clone(),
        set_type: set.kind.clone(),
        family: set.family,
        revision: set.revision,
        newest: *newest,
        tool: reader.tool,
        process: reader.process.name.clone(),
        pid: reader.process.pid,
        others: others.take(MOST_NAMES - 1).collect(),
        more: u32::try_from(reader.sets.len().saturating_sub(MOST_NAMES)).unwrap_or(u32::MAX),
    })
}

/// Whose tool makes sets of this revision: somebody's who is known to make all
/// sets anew (kube-router#1677), else the host's.
fn writer(set: &IpSet, Known { sets, tools, savers }: Known<'_>) -> Option<SetEvidence> {
    let offered = sets.types.get(&set.kind)?.max;
    let makes = |space: &&ToolSpace| {
        let newest = space.ipset.and_then(|tool| tool.newest_revision(&set.kind));
        newest.is_some_and(|newest| newest.min(offered) == set.revision)
    };
    let known = |space: &ToolSpace| {
        let mut processes = space.processes.iter();
        let writes = |name: &str| name != WEAVE && savers.contains(&name);
        processes.find(|process| writes(&process.name)).cloned()
    };
    let mut spaces = tools.spaces.iter().filter(makes);
    let named = spaces.clone().find_map(|space| Some((space, Some(known(space)?))));
    let (space, process) = named.or_else(|| Some((spaces.find(|space| space.is_host)?, None)))?;
    Some(SetEvidence::Writer {
        set_type: set.kind.clone(),
        revision: set.revision,
        tool: space.ipset?,
        process: process.as_ref().map(|process| process.name.clone()),
        pid: process.map(|process| process.pid),
    })
}

fn is_controllers(set: &str) -> bool {
    let name = set.strip_prefix(OF_IPV6).unwrap_or(set);
    CONTROLLERS.iter().any(|own| name.starts_with(own))
}

/// Sets that take no more members, or soon will not. One that no rule refers to
/// harms nobody, and one that evicts members takes new ones for ever. Others' than
/// the controllers', as lists of addresses to block, are made with as many places
/// as they have members: whether one is missing cannot be told.
fn fullness(sets: &IpSets, verdicts: &mut Verdicts) {
    let limited = sets.sets.iter().filter_map(|set| {
        let capacity = set.capacity.filter(|&capacity| capacity >= LEAST_CAPACITY)?;
        (set.references > 0 && !set.evicts).then_some((set, capacity))
    });
    let mut told = 0;
    for (set, capacity) in limited {
        let code = if set.elements >= capacity && is_controllers(&set.name) {
            Code::IpsetFull
        } else if u64::from(set.elements) * 100 >= u64::from(capacity) * NEARLY_PERCENT {
            Code::IpsetNearlyFull
        } else {
            continue;
        };
        told += 1;
        if told > MOST_FULL {
            break;
        }
        verdicts.add(Finding {
            code,
            subject: Subject::Thing { what: Thing::Set, name: set.name.clone() },
            direction: None,
            hop: None,
            evidence: vec![Evidence::Set(SetEvidence::Filled {
                set: set.name.clone(),
                set_type: set.kind.clone(),
                elements: set.elements,
                capacity,
                references: set.references,
            })],
            confidence: Confidence::Certain,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::delta::Delta;
    use crate::fact::{Fact, Gap};
    use crate::model::{
        Family, Netfilter, NftTable, Programmed, Revisions, ServiceHealth, SetChange,
    };
    use crate::snapshot::Snapshot;
    use crate::time::Mono;

    fn set(name: &str, revision: u8) -> IpSet {
        IpSet {
            name: name.to_owned(),
            kind: "hash:ip".to_owned(),
            family: Some(4),
            revision,
            ..IpSet::default()
        }
    }

    fn filled(elements: u32, capacity: u32) -> IpSet {
        IpSet { elements, capacity: Some(capacity), references: 1, ..set("cali40pods", 5) }
    }

    fn space(number: u64, ipset: &str, process: &str) -> ToolSpace {
        ToolSpace {
            mount_namespace: number,
            is_host: number == 1,
            processes: vec![ToolProcess { pid: 4242, name: process.to_owned() }],
            ipset: Some(ipset.parse().unwrap()),
            ..ToolSpace::default()
        }
    }

    fn seen<T>(value: T) -> Fact<Arc<T>> {
        Fact::Seen { value: Arc::new(value), at: Mono(1) }
    }

    fn sets(sets: Vec<IpSet>) -> IpSets {
        let types = [("hash:ip".to_owned(), Revisions { min: 0, max: 6 })].into();
        IpSets { sets, types, ..IpSets::default() }
    }

    fn said(ipsets: Fact<Arc<IpSets>>, tools: Fact<Arc<Tools>>) -> Verdicts {
        let now = Snapshot { ipsets, tools, ..Snapshot::default() };
        let mut verdicts = Verdicts::default();
        let context = Context { delta: Delta { before: None, now: &now }, now: &now, digest: None };
        judge(&context, &mut verdicts);
        verdicts
    }

    fn read(sets: IpSets, spaces: Vec<ToolSpace>) -> Vec<Finding> {
        let verdicts = said(seen(sets), seen(Tools { spaces }));
        assert_eq!(verdicts.blind, []);
        verdicts.findings
    }

    fn incident() -> (IpSets, Vec<ToolSpace>) {
        let raised = SetChange { set: "cali40this-host".to_owned(), from: 5, to: 6, at: Mono(9) };
        let found = vec![set("KUBE-SRC-AB", 6), set("cali40masq", 5), set("cali40this-host", 6)];
        let sets = IpSets { changes: vec![raised], ..sets(found) };
        let mut container = space(2, "7.10", FELIX);
        container.processes[0].pid = 77;
        (sets, vec![space(1, "7.17", "k3s-server"), container])
    }

    #[test]
    fn felix_before_a_set_that_it_cannot_read() {
        let (sets, spaces) = incident();
        let findings = read(sets, spaces);
        let codes: Vec<_> = findings.iter().map(|finding| finding.code).collect();
        assert_eq!(codes, [Code::IpsetReaderTooOld]);
        let text: Vec<_> = findings[0].evidence.iter().map(ToString::to_string).collect();
        let text = text.join("\n");
        for told in [
            "cali40this-host (hash:ip) has revision 6",
            "ipset 7.10 of calico-node (process 77)",
            "up to 5",
            "nor can it read KUBE-SRC-AB",
            "host's own ipset is 7.17",
            "cali40this-host was made anew: its revision was 5 and is 6",
            "ipset 7.17 of k3s-server (process 4242)",
            "1 set is named as kube-router names its own: KUBE-SRC-AB",
        ] {
            assert!(text.contains(told), "{told} in:\n{text}");
        }
    }

    #[test]
    fn a_reader_that_knows_the_revision_is_content() {
        let (newer, _) = incident();
        for spaces in [
            vec![space(1, "7.17", "k3s-server"), space(2, "7.16", FELIX)],
            // Nobody who runs there reads all sets.
            vec![space(1, "7.17", "k3s-server"), space(2, "7.10", "nginx")],
            // What the host's administrator has, nobody's agent uses.
            vec![space(1, "7.10", "kubelet"), space(2, "7.22", FELIX)],
            // Nothing is said of a version that nobody could tell.
            vec![ToolSpace { ipset: None, ..space(2, "7.10", FELIX) }],
        ] {
            assert_eq!(read(newer.clone(), spaces), []);
        }
        let low = sets(vec![set("KUBE-SRC-AB", 5), set("cali40masq", 5)]);
        assert_eq!(read(low, vec![space(2, "7.10", FELIX)]), []);
    }

    #[test]
    fn a_felix_that_is_well_reads_its_own_sets_only() {
        let judged = |names: &[&str], iptables: &str, ailing_since: Option<Mono>| -> Vec<Code> {
            let all = names.iter().map(|name| set(name, 6)).collect();
            let felix =
                ServiceHealth { service: Service::Felix, answer: None, ailing_since, ailing: 0 };
            let now = Snapshot {
                ipsets: seen(sets(all)),
                tools: seen(Tools {
                    spaces: vec![ToolSpace {
                        iptables: iptables.parse().ok(),
                        ..space(2, "7.11", FELIX)
                    }],
                }),
                services: seen(vec![felix]),
                ..Snapshot::default()
            };
            let mut verdicts = Verdicts::default();
            let delta = Delta { before: None, now: &now };
            judge(&Context { delta, now: &now, digest: None }, &mut verdicts);
            verdicts.findings.iter().map(|finding| finding.code).collect()
        };
        let code = |names: &[&str], ailing_since| judged(names, "1.8.4", ailing_since);
        // kube-proxy's in IPVS mode.
        assert_eq!(code(&["KUBE-CLUSTER-IP"], None), []);
        assert_eq!(code(&["KUBE-CLUSTER-IP"], Some(Mono(1))), [Code::IpsetReaderTooOld]);
        assert_eq!(code(&["KUBE-CLUSTER-IP", "cali40masq"], None), [Code::IpsetReaderTooOld]);
        // A later release is not ready for another reason.
        assert_eq!(judged(&["KUBE-CLUSTER-IP"], "1.8.8", Some(Mono(1))), []);
        assert_eq!(judged(&["cali40masq"], "1.8.8", None), [Code::IpsetReaderTooOld]);
    }

    #[test]
    fn k3s_reads_sets_only_where_it_has_network_policies() {
        let judged = |names: &[&str], netfilter: Fact<Arc<Netfilter>>| {
            let all = names.iter().map(|name| set(name, 6)).collect();
            let now = Snapshot {
                ipsets: seen(sets(all)),
                tools: seen(Tools { spaces: vec![space(1, "7.11", "k3s-server")] }),
                netfilter,
                ..Snapshot::default()
            };
            let mut verdicts = Verdicts::default();
            let delta = Delta { before: None, now: &now };
            judge(&Context { delta, now: &now, digest: None }, &mut verdicts);
            let codes: Vec<_> = verdicts.findings.iter().map(|finding| finding.code).collect();
            (codes, verdicts.blind)
        };
        let with_chains = |chains| {
            let by = Controller::KubeRouter;
            let own = Programmed { by, chains, rules: 9, anchored: 3, denials: 1 };
            let table = NftTable {
                family: Family::Ip,
                name: "filter".to_owned(),
                handle: 1,
                owner: None,
                chains,
                rules: 9,
                base: Vec::new(),
                programmed: vec![own],
                entries: Vec::new(),
                blockers: Vec::new(),
                silencers: Vec::new(),
                barriers: Vec::new(),
                untracking: Vec::new(),
                illegible: Vec::new(),
                floods: Vec::new(),
            };
            seen(Netfilter { tables: vec![table], ..Netfilter::default() })
        };
        let behind = vec![Code::IpsetReaderBehind];
        assert_eq!(judged(&["pods"], with_chains(0)), (vec![], vec![]));
        assert_eq!(judged(&["pods"], with_chains(3)), (behind.clone(), vec![]));
        assert_eq!(judged(&["pods", "KUBE-DST-AB"], with_chains(0)), (behind.clone(), vec![]));
        assert_eq!(judged(&["pods"], Fact::Missing(Gap::Denied)), (vec![], behind));
    }

    #[test]
    fn kube_router_behind_is_a_warning() {
        let (sets, _) = incident();
        let code = |spaces| -> Vec<Code> {
            read(sets.clone(), spaces).iter().map(|finding| finding.code).collect()
        };
        assert_eq!(code(vec![space(2, "7.15", "kube-router")]), [Code::IpsetReaderBehind]);
        assert_eq!(code(vec![space(2, "7.16", "kube-router")]), []);
    }

    #[test]
    fn a_reader_that_was_not_looked_at_is_not_known_to_be_content() {
        let judged = |process: &str| {
            let unread = ToolSpace { is_unread: true, ipset: None, ..space(3, "7.10", process) };
            let spaces = vec![space(2, "7.10", FELIX), unread];
            let verdicts = said(seen(sets(vec![set("cali40masq", 6)])), seen(Tools { spaces }));
            let codes: Vec<_> = verdicts.findings.iter().map(|finding| finding.code).collect();
            assert_eq!(codes, [Code::IpsetReaderTooOld], "what was read is judged");
            verdicts.blind
        };
        assert_eq!(judged(FELIX), [Code::IpsetReaderTooOld]);
        assert_eq!(judged(KUBE_ROUTER), [Code::IpsetReaderBehind]);
        assert_eq!(judged("nginx"), []);
    }

    #[test]
    fn many_sets_are_counted_and_few_named() {
        let many = (0..500).map(|number| set(&format!("cali-{number:03}"), 6)).collect();
        let findings = read(sets(many), vec![space(2, "7.10", FELIX)]);
        let text = findings[0].evidence[0].to_string();
        assert!(text.contains("cali-007") && !text.contains("cali-008"), "{text}");
        assert!(text.contains("492 more"), "{text}");
    }

    #[test]
    fn a_set_is_full_when_nothing_fits() {
        let judged = |set: IpSet| -> Vec<Code> {
            read(sets(vec![set]), vec![]).iter().map(|finding| finding.code).collect()
        };
        assert_eq!(judged(filled(1000, 1000)), [Code::IpsetFull]);
        assert_eq!(judged(filled(999, 1000)), [Code::IpsetNearlyFull]);
        assert_eq!(judged(filled(950, 1000)), [Code::IpsetNearlyFull]);
        assert_eq!(judged(filled(949, 1000)), []);
        assert_eq!(judged(filled(u32::MAX, u32::MAX)), [Code::IpsetFull]);
        let named = |name: &str| IpSet { name: name.to_owned(), ..filled(1000, 1000) };
        for name in ["KUBE-SRC-AB", "inet6:KUBE-DST-AB", "cilium_node_set_v4", "felix-4-pools"] {
            assert_eq!(judged(named(name)), [Code::IpsetFull], "{name}");
        }
        for name in ["blocklist", "f2b-sshd", "inet6:bad", "my-cali40"] {
            assert_eq!(judged(named(name)), [Code::IpsetNearlyFull], "{name}");
            assert_eq!(judged(IpSet { references: 0, ..named(name) }), [], "{name}");
        }
        // Made for exactly what is in it.
        assert_eq!(judged(filled(4, 4)), []);
        assert_eq!(judged(IpSet { references: 0, ..filled(1000, 1000) }), []);
        assert_eq!(judged(IpSet { evicts: true, ..filled(1000, 1000) }), []);
        assert_eq!(judged(IpSet { capacity: None, ..filled(1000, 1000) }), []);
    }

    #[test]
    fn what_is_not_known_is_not_healthy() {
        let blind = |ipsets, tools| said(ipsets, tools).blind;
        let readers = [Code::IpsetReaderTooOld, Code::IpsetReaderBehind];
        assert_eq!(blind(seen(IpSets::default()), Fact::Missing(Gap::Denied)), readers);
        let full = [Code::IpsetFull, Code::IpsetNearlyFull];
        assert_eq!(
            blind(Fact::Missing(Gap::Denied), seen(Tools::default())),
            [full, readers].concat()
        );
    }
}
