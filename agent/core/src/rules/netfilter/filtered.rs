//! What drops outer packets here, where the kernel itself says that netfilter
//! drops some.

use std::net::IpAddr;

use super::{MOST_NAMED, finding, is_of_netfilter, policy, thing};
use crate::catalog::Code;
use crate::finding::{Confidence, Direction, Evidence, Filtered, Finding, Subject, Thing};
use crate::kernel::{DropForm, KernelCounts, PacketDrop};
use crate::ladder::{Hop, Segment};
use crate::model::{Blocker, ChainHook, Encapsulation, Family, Netfilter, NftTable, Outer};
use crate::rules::{Context, Verdicts};

/// Outer packets that netfilter dropped lately, below which nothing is said: a
/// ruleset that is being replaced may cost one.
const OUTER_DROPS: u64 = 2;
/// Hooks that outer packets pass on their way out.
const OUTWARDS: [ChainHook; 3] = [ChainHook::Output, ChainHook::Postrouting, ChainHook::Egress];
/// Those that they pass on their way in.
const INWARDS: [ChainHook; 3] = [ChainHook::Ingress, ChainHook::Prerouting, ChainHook::Input];

/// What may have dropped a packet, and how well it fits: less is better.
pub(super) struct Suspect<'a> {
    table: &'a NftTable,
    chain: &'a str,
    pub(super) rank: u8,
    /// None for a policy.
    pub(super) rule: Option<&'a Blocker>,
    pub(super) evidence: Filtered,
}

impl Suspect<'_> {
    /// The chain that it is in.
    pub(super) fn subject(&self) -> Subject {
        thing(Thing::Chain, format!("{} {}", self.table.title(), self.chain))
    }
}

/// Where outer packets meet netfilter: which way, on which stretch, at which hooks.
pub(super) fn way(outbound: bool) -> (Direction, Segment, [ChainHook; 3]) {
    if outbound {
        (Direction::Outbound, Segment { from: Hop::Encapsulated, to: Hop::LeftNic }, OUTWARDS)
    } else {
        (Direction::Inbound, Segment { from: Hop::ReachedNic, to: Hop::Decapsulated }, INWARDS)
    }
}

/// Outer packets that netfilter drops here, by what drops them.
pub(super) fn judge(
    context: &Context<'_>,
    netfilter: &Netfilter,
    counts: &KernelCounts,
    verdicts: &mut Verdicts,
) {
    let mut found: Vec<Finding> = Vec::new();
    let drops = counts.drops.iter().filter(|drop| {
        drop.form == DropForm::Outer && drop.lately >= OUTER_DROPS && is_of_netfilter(&drop.site)
    });
    for drop in drops {
        let Some(suspect) = suspect(context, netfilter, drop) else { continue };
        let (direction, hop, _) = way(drop.outbound);
        let subject = suspect.subject();
        let dropped =
            Evidence::KernelDropped { here: true, site: drop.site.clone(), packets: drop.lately };
        if let Some(known) = found.iter_mut().find(|known| known.subject == subject) {
            if known.direction != Some(direction) {
                (known.direction, known.hop) = (Some(Direction::Both), None);
            }
            if known.evidence.len() <= MOST_NAMED {
                known.evidence.push(dropped);
            }
            continue;
        }
        found.push(Finding {
            direction: Some(direction),
            hop: Some(hop),
            // A rule with conditions that are not read may mean other packets.
            confidence: if suspect.rank == 0 { Confidence::Certain } else { Confidence::High },
            ..finding(
                Code::EncapsulationFiltered,
                subject,
                vec![Evidence::Netfilter(suspect.evidence), dropped],
            )
        });
    }
    found.into_iter().for_each(|finding| verdicts.add(finding));
}

/// The rule or policy that fits a drop best.
fn suspect<'a>(
    context: &Context<'_>,
    netfilter: &'a Netfilter,
    drop: &'a PacketDrop,
) -> Option<Suspect<'a>> {
    let peer = drop.peer?;
    let (_, leads, tunnel) = context.tunnelled_peers().find(|(known, leads, _)| {
        let is_ipip = leads.encapsulation == Encapsulation::Ipip;
        known.id == peer && is_ipip == (drop.ip_protocol == 4)
    })?;
    let (own, (_, _, hooks)) = (context.outer_source(peer, tunnel), way(drop.outbound));
    let outer = Outer {
        encapsulation: leads.encapsulation,
        from: if drop.outbound { own } else { Some(peer.0) },
        to: if drop.outbound { Some(peer.0) } else { own },
        in_device: if drop.outbound { None } else { drop.site.device.as_deref() },
    };
    suspects(netfilter, peer.0, outer, hooks).min_by_key(|suspect| suspect.rank)
}

/// The rules and policies on these hooks that may meet a packet of a peer.
pub(super) fn suspects<'a>(
    netfilter: &'a Netfilter,
    peer: IpAddr,
    outer: Outer<'a>,
    hooks: [ChainHook; 3],
) -> impl Iterator<Item = Suspect<'a>> {
    let tables = move || {
        netfilter.tables.iter().filter(move |table| match table.family {
            Family::Inet | Family::Netdev => true,
            Family::Ip => peer.is_ipv4(),
            Family::Ip6 => peer.is_ipv6(),
            Family::Arp | Family::Bridge => false,
        })
    };
    let rules = tables().flat_map(|table| table.blockers.iter().map(move |rule| (table, rule)));
    let rules = rules
        .filter(move |(_, rule)| rule.hooks.iter().any(|hook| hooks.contains(hook)))
        .filter(move |(_, rule)| rule.matches.may_meet(outer))
        .map(|(table, rule)| Suspect {
            table,
            chain: &rule.at.chain,
            rank: rule.matches.rank(),
            rule: Some(rule),
            evidence: Filtered::ByRule {
                table: table.title(),
                at: rule.at.clone(),
                hooks: rule.hooks.clone(),
                matches: rule.matches.clone(),
                rejects: rule.rejects,
                packets: rule.packets,
                owner: table.owner,
            },
        });
    let policies = tables().flat_map(move |table| {
        let dropping = table.base.iter().filter(|base| base.drops);
        dropping.filter_map(move |base| {
            let hook = base.hook.filter(|hook| hooks.contains(hook))?;
            let evidence = policy(table, base, hook, Some(outer.encapsulation));
            // As a rule that names nothing, at the end of the chain.
            Some(Suspect { table, chain: &base.name, rank: 2, rule: None, evidence })
        })
    });
    rules.chain(policies)
}
