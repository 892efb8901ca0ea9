//! Tables of iptables that an iptables-nft cannot read, judged by those that are
//! installed: on the host, and in the containers on its network.
//!
//! What iptables reads from 1.8.8 on is also what it writes since then, as a
//! range of ports: that is as it should be, but for an older one beside it.

use super::{MOST_NAMED, finding, is_off, thing};
use crate::catalog::Code;
use crate::finding::{Confidence, Evidence, Filtered, Finding, Thing};
use crate::model::{
    BaseChain, Controller, Family, Illegible, Netfilter, NftTable, Readers, SKIPS_FOREIGN_CHAINS,
    ToolProcess, ToolSpace, ToolVersion, Tools,
};
use crate::rules::Verdicts;
use crate::snapshot::Snapshot;

/// Agents that read iptables' tables again and again, and whose chains they keep.
const AGENTS: [(&str, &[Controller]); 8] = [
    ("calico-node", &[Controller::Calico]),
    ("kube-proxy", &[Controller::KubeProxy]),
    ("kube-router", &[Controller::KubeRouter]),
    ("k3s", K3S),
    ("k3s-server", K3S),
    ("k3s-agent", K3S),
    ("cilium-agent", &[Controller::Cilium]),
    ("flanneld", &[Controller::Flannel]),
];
/// What K3s has in its one process.
const K3S: &[Controller] = &[Controller::KubeProxy, Controller::KubeRouter, Controller::Flannel];
/// Readers that one finding tells of.
const MOST_READERS: usize = 4;

pub(super) fn judge(netfilter: &Netfilter, now: &Snapshot, verdicts: &mut Verdicts) {
    let tables = netfilter.tables.iter().filter(|table| table.is_of_iptables());
    match now.tools.seen() {
        Some(tools) => {
            tables.for_each(|table| by_readers(table, netfilter, tools, verdicts));
        }
        None => by_any_version(tables, netfilter, is_off(&now.tools), verdicts),
    }
}

/// Whether a process of this name is such an agent.
pub(super) fn is_agent(name: &str) -> bool {
    AGENTS.iter().any(|(agent, _)| *agent == name)
}

/// What keeps a version of iptables-nft from reading a table.
#[derive(Clone, Copy)]
enum Obstacle<'a> {
    Rule(&'a Illegible),
    Chain(&'a BaseChain),
}

impl Obstacle<'_> {
    /// The first version that reads the table in spite of it.
    fn since(self) -> Option<ToolVersion> {
        match self {
            Self::Rule(rule) => rule.readers.since(),
            Self::Chain(_) => Some(SKIPS_FOREIGN_CHAINS),
        }
    }

    fn stops(self, tool: ToolVersion) -> bool {
        match self {
            Self::Rule(rule) => rule.readers.stop(tool),
            Self::Chain(_) => tool < SKIPS_FOREIGN_CHAINS,
        }
    }

    fn evidence(self, table: &NftTable) -> Evidence {
        match self {
            Self::Rule(rule) => illegible(table, rule),
            Self::Chain(chain) => super::foreign_chain(table, chain),
        }
    }
}

fn illegible(table: &NftTable, rule: &Illegible) -> Evidence {
    Evidence::Netfilter(Filtered::Illegible {
        table: table.title(),
        at: rule.at.clone(),
        expression: rule.expression.clone(),
        readers: rule.readers,
    })
}

/// The worst first.
fn obstacles(table: &NftTable) -> impl Iterator<Item = Obstacle<'_>> {
    let foreign = table.base.iter().filter(|chain| !chain.is_of_iptables(&table.name));
    table.illegible.iter().map(Obstacle::Rule).chain(foreign.map(Obstacle::Chain))
}

/// Where an agent keeps its rules.
#[derive(Clone, Copy, PartialEq)]
enum Backend {
    /// In tables that iptables-nft reads.
    Nft(Confidence),
    /// In legacy xtables, or in a table of its own.
    Elsewhere,
    /// Nobody can tell.
    Hidden,
}

impl Backend {
    /// By the chains that it keeps: where they are not seen it has legacy ones, if
    /// the older xtables have rules of this family.
    fn of(keeps: &[Controller], family: Family, netfilter: &Netfilter) -> Self {
        if keeps.iter().any(|one| netfilter.is_in_iptables(*one)) {
            return Self::Nft(Confidence::Certain);
        }
        if keeps.iter().any(|one| netfilter.has_own_table(*one)) {
            return Self::Elsewhere;
        }
        if netfilter.legacy_is_hidden {
            return Self::Hidden;
        }
        let is_v6 = family == Family::Ip6;
        let mut legacy = netfilter.legacy.iter().filter(|table| table.v6 == is_v6);
        if legacy.any(|table| table.rules.unwrap_or(0) > 0) {
            Self::Elsewhere
        } else {
            Self::Nft(Confidence::High)
        }
    }
}

/// The agents of a space, and where each keeps its rules.
fn agents<'a>(
    space: &'a ToolSpace,
    table: &NftTable,
    netfilter: &Netfilter,
) -> impl Iterator<Item = (&'a ToolProcess, Backend)> {
    space.processes.iter().filter_map(|process| {
        let (_, keeps) = AGENTS.iter().find(|(name, _)| *name == process.name)?;
        Some((process, Backend::of(keeps, table.family, netfilter)))
    })
}

/// An iptables-nft that is installed here.
struct Reader<'a> {
    tool: ToolVersion,
    space: &'a ToolSpace,
    /// The agent that uses it, and how certain it is that it does.
    agent: Option<(&'a ToolProcess, Confidence)>,
    /// An agent is there of which nobody can tell whether it uses it.
    is_undecided: bool,
}

impl<'a> Reader<'a> {
    fn of(space: &'a ToolSpace, table: &NftTable, netfilter: &Netfilter) -> Option<Self> {
        let users = agents(space, table, netfilter).filter_map(|(process, backend)| {
            let Backend::Nft(confidence) = backend else { return None };
            Some((process, confidence))
        });
        // The first whose chains are seen, else the first.
        let agent = users.max_by_key(|(process, confidence)| {
            (*confidence == Confidence::Certain, std::cmp::Reverse(process.pid))
        });
        let is_undecided =
            agents(space, table, netfilter).any(|(_, backend)| backend == Backend::Hidden);
        Some(Self { tool: space.iptables?, space, agent, is_undecided })
    }

    /// The agent that uses it, else whoever has it in a container.
    fn process(&self) -> Option<ToolProcess> {
        let any = || self.space.processes.first().filter(|_| !self.space.is_host);
        self.agent.map(|(process, _)| process).or_else(any).cloned()
    }

    /// What it cannot read, as evidence; none when it reads all.
    fn refuses(&self, table: &NftTable) -> Option<Evidence> {
        let since = obstacles(table).filter(|one| one.stops(self.tool)).map(Obstacle::since);
        // None reads what no version reads.
        let since = since.reduce(|one, other| Some(one?.max(other?)))?;
        let in_use = self.agent.is_some();
        Some(Evidence::Netfilter(Filtered::Refused {
            table: table.title(),
            tool: self.tool,
            on_host: self.space.is_host,
            process: self.process(),
            in_use,
            since,
        }))
    }
}

fn by_readers(table: &NftTable, netfilter: &Netfilter, tools: &Tools, verdicts: &mut Verdicts) {
    let spaces = tools.spaces.iter();
    let mut readers: Vec<_> =
        spaces.filter_map(|space| Reader::of(space, table, netfilter)).collect();
    // Those first who will fail.
    readers.sort_by_key(|reader| reader.agent.is_none());
    let told = |reader: &Reader<'_>| reader.refuses(table);
    let stopped: Vec<_> =
        readers.iter().filter_map(|reader| Some((reader, told(reader)?))).collect();
    let stops_any = |one: Obstacle<'_>| {
        readers.is_empty() || readers.iter().any(|reader| one.stops(reader.tool))
    };
    let is_lost = obstacles(table).any(|one| one.since().is_none() && stops_any(one));
    // An agent's, though nobody knows its version.
    let keeps = |(_, backend)| backend == Backend::Nft(Confidence::Certain);
    let is_kept = || tools.spaces.iter().any(|space| agents(space, table, netfilter).any(keeps));
    let agent = stopped.iter().find_map(|(reader, _)| reader.agent);
    let (code, confidence) = match agent {
        Some((_, confidence)) => (Some(Code::NftTableIncompatible), confidence),
        None if no_version_reads(table) && is_kept() => {
            (Some(Code::NftTableIncompatible), Confidence::Certain)
        }
        None if is_lost || !stopped.is_empty() => {
            (Some(Code::NftTableUnreadableBySome), Confidence::Certain)
        }
        None => (None, Confidence::Certain),
    };
    if code == Some(Code::NftTableUnreadableBySome)
        && stopped.iter().any(|(reader, _)| reader.is_undecided)
    {
        verdicts.blind(&[Code::NftTableIncompatible]);
    }
    if let Some(code) = code {
        let tools: Vec<_> = stopped.iter().map(|(reader, _)| reader.tool).collect();
        let stops =
            |one: &Obstacle<'_>| tools.is_empty() || tools.iter().any(|tool| one.stops(*tool));
        let mut evidence: Vec<_> = obstacles(table)
            .filter(stops)
            .take(MOST_NAMED)
            .map(|obstacle| obstacle.evidence(table))
            .collect();
        let in_container = stopped.iter().any(|(reader, _)| !reader.space.is_host);
        evidence.extend(stopped.into_iter().map(|(_, told)| told).take(MOST_READERS));
        if readers.is_empty() {
            evidence.push(Evidence::Netfilter(Filtered::NoReader));
        }
        let host = readers.iter().find(|reader| reader.space.is_host);
        let host = host.filter(|host| in_container && told(host).is_none());
        evidence
            .extend(host.map(|host| Evidence::Netfilter(Filtered::HostReads { tool: host.tool })));
        let found = finding(code, thing(Thing::Table, table.title()), evidence);
        verdicts.add(Finding { confidence, ..found });
    }
    unread(table, netfilter, tools, verdicts);
    misprinted(table, &readers, verdicts);
}

/// What nobody had time to look at may be an iptables that cannot read a table.
fn unread(table: &NftTable, netfilter: &Netfilter, tools: &Tools, verdicts: &mut Verdicts) {
    let mut unread = tools.spaces.iter().filter(|space| space.is_unread).peekable();
    if unread.peek().is_none() || obstacles(table).next().is_none() {
        return;
    }
    verdicts.blind(&[Code::NftTableUnreadableBySome, Code::NftRuleMisprinted]);
    let may_read = |(_, backend)| backend != Backend::Elsewhere;
    if unread.any(|space| agents(space, table, netfilter).any(may_read)) {
        verdicts.blind(&[Code::NftTableIncompatible]);
    }
}

fn no_version_reads(table: &NftTable) -> bool {
    table.illegible.iter().any(|rule| rule.readers == Readers::Nobody)
}

/// As whoever comes with any version: what one of them reads is left alone, and
/// an agent is who keeps its chains in tables of iptables.
fn by_any_version<'a>(
    tables: impl Iterator<Item = &'a NftTable>,
    netfilter: &Netfilter,
    is_off: bool,
    verdicts: &mut Verdicts,
) {
    verdicts.blind(&[Code::NftTableUnreadableBySome]);
    let is_kept = Controller::ALL.into_iter().any(|by| netfilter.is_in_iptables(by));
    let code = if is_kept { Code::NftTableIncompatible } else { Code::NftTableUnreadableBySome };
    let mut is_undecided = false;
    for table in tables {
        let lost = table.illegible.iter().filter(|rule| rule.readers.since().is_none());
        let named: Vec<_> = lost.take(MOST_NAMED).map(|rule| illegible(table, rule)).collect();
        // What some versions read may be what an agent's cannot.
        is_undecided |= obstacles(table).any(|one| one.since().is_some() || !is_kept);
        if !named.is_empty() {
            let subject = thing(Thing::Table, table.title());
            verdicts.add(finding(code, subject, named));
        }
        misprinted(table, &[], verdicts);
    }
    // Who switched the source off has been told nothing by it.
    if is_undecided && !is_off {
        verdicts.blind(&[Code::NftTableIncompatible]);
    }
}

/// By whom of these; without any, what those of today misprint.
fn misprinted(table: &NftTable, readers: &[Reader<'_>], verdicts: &mut Verdicts) {
    let by = |rule: &Illegible| {
        let all = readers.iter();
        all.filter(|reader| rule.readers.is_misprinted_by(reader.tool)).collect::<Vec<_>>()
    };
    let of_today =
        |rule: &Illegible| readers.is_empty() && rule.readers == Readers::MisprintedFrom184;
    let rules = table.illegible.iter().filter(|rule| of_today(rule) || !by(rule).is_empty());
    let rules: Vec<_> = rules.take(MOST_NAMED).collect();
    let mut named: Vec<_> = rules.iter().map(|rule| illegible(table, rule)).collect();
    let worst = rules.iter().flat_map(|rule| by(rule)).max_by_key(|one| one.agent.is_some());
    if let Some(reader) = worst {
        let (tool, on_host, process) = (reader.tool, reader.space.is_host, reader.process());
        named.push(Evidence::Netfilter(Filtered::Misprints { tool, on_host, process }));
    }
    if !named.is_empty() {
        let subject = thing(Thing::Table, table.title());
        verdicts.add(finding(Code::NftRuleMisprinted, subject, named));
    }
}

#[cfg(test)]
mod tests;
