//! Netfilter's tables: what drops the overlay's packets now, and what will keep
//! the network's own programs from working.

mod counted;
mod filtered;
mod forwarded;
mod inner;
mod legibility;

use super::live;
use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::fact::{Fact, Gap};
use crate::finding::{Confidence, Evidence, Filtered, Finding, Subject, Thing};
use crate::kernel::DropSite;
use crate::model::{
    BaseChain, ChainHook, Controller, Encapsulation, Family, Netfilter, NftTable, Owner, Tunnel,
};
use crate::snapshot::Snapshot;

/// All that is judged here.
const CODES: [Code; 11] = [
    Code::EncapsulationFiltered,
    Code::ForwardPolicyDrop,
    Code::FirewallFlushed,
    Code::NftTableIncompatible,
    Code::NftRuleMisprinted,
    Code::ForeignBaseChain,
    Code::IptablesBackendsMixed,
    Code::RulesFlood,
    Code::NftTableUnreadableBySome,
    Code::UntrackedInner,
    Code::IcmpTooBigFiltered,
];
/// Those of them that are about the programs of container networks.
const OF_TABLES: [Code; 7] = [
    Code::FirewallFlushed,
    Code::NftTableIncompatible,
    Code::NftRuleMisprinted,
    Code::ForeignBaseChain,
    Code::IptablesBackendsMixed,
    Code::RulesFlood,
    Code::NftTableUnreadableBySome,
];
/// Rules of one kind that one finding names.
const MOST_NAMED: usize = 3;

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let (Some(netfilter), Some(tunnels)) =
        (context.now.netfilter.seen(), context.now.tunnels.seen())
    else {
        return verdicts.blind(&CODES);
    };
    if !tunnels.is_empty() {
        drops(context, netfilter, verdicts);
    }
    match needs_iptables(context.now, tunnels, netfilter) {
        Some(true) => tables(context, netfilter, verdicts),
        Some(false) => {}
        None => verdicts.blind(&OF_TABLES),
    }
}

/// What tunnels lose now.
fn drops(context: &Context<'_>, netfilter: &Netfilter, verdicts: &mut Verdicts) {
    match context.now.kernel.seen() {
        Some(counts) => {
            filtered::judge(context, netfilter, counts, verdicts);
            forwarded::judge(context, netfilter, counts, verdicts);
            inner::judge(context, netfilter, counts, verdicts);
        }
        None => {
            counted::judge(context, netfilter, verdicts);
            verdicts.blind(&[
                Code::ForwardPolicyDrop,
                Code::UntrackedInner,
                Code::IcmpTooBigFiltered,
            ]);
        }
    }
}

/// What keeps the programs that use iptables from working.
fn tables(context: &Context<'_>, netfilter: &Netfilter, verdicts: &mut Verdicts) {
    legibility::judge(netfilter, context.now, verdicts);
    for table in &netfilter.tables {
        foreign_chains(table, verdicts);
        floods(table, verdicts);
    }
    if netfilter.legacy_is_hidden {
        verdicts.blind(&[Code::IptablesBackendsMixed]);
    } else {
        backends(netfilter, verdicts);
    }
    flushed(context, netfilter, verdicts);
}

/// Whether this machine is a node of a container network, whose programs use
/// iptables: one of their tunnels, of their chains or of themselves is here. Many
/// have no tunnel (routes of BGP or to each host, WireGuard, Geneve), and an agent
/// that cannot read its table at boot has made none yet. A tunnel of one's own
/// making alone needs none of them; none where nobody can tell.
fn needs_iptables(now: &Snapshot, tunnels: &[Tunnel], netfilter: &Netfilter) -> Option<bool> {
    let running = now.cni.seen().and_then(|cni| cni.running.as_ref());
    let tools = now.tools.seen();
    let mut processes =
        tools.into_iter().flat_map(|tools| &tools.spaces).flat_map(|s| &s.processes);
    let is_node = tunnels.iter().any(|tunnel| tunnel.owner != Owner::Unknown)
        || Controller::ALL.into_iter().any(|by| netfilter.programmed(by).chains > 0)
        || running.is_some_and(|agents| !agents.is_empty())
        || processes.any(|process| legibility::is_agent(&process.name));
    let is_told = running.is_some()
        || tools.is_some()
        // Who switched the sources off has been told nothing by them.
        || is_off(&now.cni) && is_off(&now.tools);
    if is_node { Some(true) } else { is_told.then_some(false) }
}

fn is_off<T>(fact: &Fact<T>) -> bool {
    matches!(fact, Fact::Missing(Gap::Disabled))
}

fn finding(code: Code, subject: Subject, evidence: Vec<Evidence>) -> Finding {
    let confidence = Confidence::Certain;
    Finding { code, subject, direction: None, hop: None, evidence, confidence }
}

fn thing(what: Thing, name: String) -> Subject {
    Subject::Thing { what, name }
}

/// Whether netfilter dropped it. A kernel without reasons frees what nftables
/// drops in the function that runs the hooks.
fn is_of_netfilter(site: &DropSite) -> bool {
    match (&site.reason, &site.function) {
        (Some(reason), _) => reason.starts_with("NETFILTER_"),
        (None, Some(function)) => function == "nft_do_chain" || function == "nf_hook_slow",
        (None, None) => false,
    }
}

fn policy(
    table: &NftTable,
    base: &BaseChain,
    hook: ChainHook,
    tunnel: Option<Encapsulation>,
) -> Filtered {
    let (title, chain) = (table.title(), base.name.clone());
    Filtered::ByPolicy { table: title, chain, hook, rules: base.rules, tunnel, owner: table.owner }
}

fn foreign_chains(table: &NftTable, verdicts: &mut Verdicts) {
    if !table.is_of_iptables() {
        return;
    }
    for chain in table.base.iter().filter(|chain| !chain.is_of_iptables(&table.name)) {
        let subject = thing(Thing::Chain, format!("{} {}", table.title(), chain.name));
        let evidence = vec![foreign_chain(table, chain)];
        verdicts.add(finding(Code::ForeignBaseChain, subject, evidence));
    }
}

fn foreign_chain(table: &NftTable, chain: &BaseChain) -> Evidence {
    Evidence::Netfilter(Filtered::ForeignChain {
        table: table.title(),
        chain: chain.name.clone(),
        type_of_chain: chain.kind.clone(),
        hook: chain.hook,
        priority: chain.priority,
    })
}

fn floods(table: &NftTable, verdicts: &mut Verdicts) {
    for flood in &table.floods {
        let evidence = Filtered::Repeated {
            table: table.title(),
            at: flood.at.clone(),
            times: flood.times,
            of: flood.rules,
        };
        let subject = thing(Thing::Chain, format!("{} {}", table.title(), flood.at.chain));
        verdicts.add(finding(Code::RulesFlood, subject, vec![Evidence::Netfilter(evidence)]));
    }
}

/// Rules of both backends, in tables of one family. A table that a look with
/// iptables-legacy made has none.
fn backends(netfilter: &Netfilter, verdicts: &mut Verdicts) {
    for (v6, family) in [(false, Family::Ip), (true, Family::Ip6)] {
        let backend = |is_legacy: bool, table: String, rules: u32| {
            Evidence::Netfilter(Filtered::Backend { is_legacy, table, rules })
        };
        let nft = netfilter.tables.iter().filter(|table| table.family == family);
        let nft: Vec<_> = nft
            .filter(|table| table.is_of_iptables() && table.rules > 0)
            .take(MOST_NAMED)
            .map(|table| backend(false, table.title(), table.rules))
            .collect();
        let legacy = netfilter.legacy.iter().filter(|table| table.v6 == v6);
        let legacy: Vec<_> = legacy
            .filter_map(|table| Some((table, table.rules.filter(|rules| *rules > 0)?)))
            .take(MOST_NAMED)
            .map(|(table, rules)| backend(true, format!("{family} {}", table.name), rules))
            .collect();
        if !nft.is_empty() && !legacy.is_empty() {
            let evidence = [nft, legacy].concat();
            verdicts.add(finding(Code::IptablesBackendsMixed, Subject::Node, evidence));
            return;
        }
    }
}

fn flushed(context: &Context<'_>, netfilter: &Netfilter, verdicts: &mut Verdicts) {
    for gone in netfilter.flushed.iter().filter(|gone| !gone.is_over(context.at())) {
        let now = netfilter.programmed(gone.of);
        let evidence = Filtered::Flushed {
            of: gone.of,
            chains: gone.chains,
            rules: gone.rules,
            chains_now: now.chains,
            rules_now: now.rules,
            by: gone.by.clone(),
        };
        let subject = thing(Thing::Service, gone.of.slug().to_owned());
        verdicts.add(finding(Code::FirewallFlushed, subject, vec![Evidence::Netfilter(evidence)]));
    }
}

#[cfg(test)]
mod tests;
