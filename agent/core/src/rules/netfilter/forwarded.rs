//! Chains that forward nothing but what their rules accept: by their policy, or by a
//! rule against everything at their end, as firewalld has it.

use super::live;
use super::{Context, MOST_NAMED, Verdicts, finding, is_of_netfilter, policy, thing};
use crate::catalog::Code;
use crate::finding::{Confidence, Direction, Evidence, Filtered, Finding, Thing};
use crate::kernel::KernelCounts;
use crate::ladder::{Hop, Segment};
use crate::model::{BaseChain, Blocker, ChainHook, Family, Netfilter, NftTable};

/// EtherType of IPv6.
const IPV6: u16 = 0x86dd;

/// Such a chain, while nearly all of a peer's traffic with pods here is dropped by
/// netfilter. Where rules accept that, the same end is what a careful administrator
/// sets. Where network policies deny something, all of a peer's traffic may be what
/// they deny: nothing tells one drop from the other.
pub(super) fn judge(
    context: &Context<'_>,
    netfilter: &Netfilter,
    counts: &KernelCounts,
    verdicts: &mut Verdicts,
) {
    if netfilter.denies_by_policy() {
        return;
    }
    let dropped = Dropped::of(context, counts);
    // Both ways it is more than one stretch of the ladder.
    let (direction, hop) = match dropped.places.as_slice() {
        [] => return,
        [(direction, hop)] => (Some(*direction), Some(*hop)),
        _ => (None, None),
    };
    let ends = ends(netfilter, &dropped.v6);
    let Some(first) = ends.first() else { return };
    let subject = thing(Thing::Chain, format!("{} {}", first.table.title(), first.chain()));
    let mut evidence: Vec<_> = ends.iter().take(MOST_NAMED).map(End::evidence).collect();
    evidence.extend(dropped.evidence);
    // A packet may meet any of them.
    let is_only = ends.iter().all(|end| end.table.title() == first.table.title());
    let confidence = if is_only { Confidence::High } else { Confidence::Low };
    let found = finding(Code::ForwardPolicyDrop, subject, evidence);
    verdicts.add(Finding { direction, hop, confidence, ..found });
}

/// Live traffic of peers that netfilter drops.
#[derive(Default)]
struct Dropped {
    evidence: Vec<Evidence>,
    places: Vec<(Direction, Segment)>,
    /// Of which families of IP.
    v6: Vec<bool>,
}

impl Dropped {
    fn of(context: &Context<'_>, counts: &KernelCounts) -> Self {
        let mut all = Self::default();
        for (peer, leads, _) in context.tunnelled_peers() {
            for outbound in [false, true] {
                let is_nic = |name: &str| context.is_underlay(name);
                let Some(dropped) = live::dropped(counts, peer, leads, outbound, is_nic) else {
                    continue;
                };
                if !is_of_netfilter(&dropped.worst.site) {
                    continue;
                }
                all.add(outbound, &dropped);
            }
        }
        all
    }

    fn add(&mut self, outbound: bool, dropped: &live::Dropped<'_>) {
        let place = if outbound {
            (Direction::Outbound, Segment { from: Hop::Sent, to: Hop::Encapsulated })
        } else {
            (Direction::Inbound, Segment { from: Hop::Decapsulated, to: Hop::Delivered })
        };
        if !self.places.contains(&place) {
            self.places.push(place);
        }
        let v6 = dropped.worst.ethertype == IPV6;
        if !self.v6.contains(&v6) {
            self.v6.push(v6);
        }
        if self.evidence.len() < MOST_NAMED {
            let (site, packets) = (dropped.worst.site.clone(), dropped.packets);
            self.evidence.push(Evidence::KernelDropped { here: true, site, packets });
        }
    }
}

/// What ends a chain on forwarding.
struct End<'a> {
    table: &'a NftTable,
    by: By<'a>,
}

enum By<'a> {
    Policy(&'a BaseChain),
    Rule(&'a Blocker),
}

impl End<'_> {
    fn chain(&self) -> &str {
        match self.by {
            By::Policy(base) => &base.name,
            By::Rule(rule) => &rule.at.chain,
        }
    }

    fn evidence(&self) -> Evidence {
        Evidence::Netfilter(match self.by {
            By::Policy(base) => policy(self.table, base, ChainHook::Forward, None),
            By::Rule(rule) => Filtered::ByRule {
                table: self.table.title(),
                at: rule.at.clone(),
                hooks: rule.hooks.clone(),
                matches: rule.matches.clone(),
                rejects: rule.rejects,
                packets: rule.packets,
                owner: self.table.owner,
            },
        })
    }
}

/// Policies first, those of the fewest rules before others.
fn ends<'a>(netfilter: &'a Netfilter, v6: &[bool]) -> Vec<End<'a>> {
    let sees = |family: Family| match family {
        Family::Inet => true,
        Family::Ip => v6.contains(&false),
        Family::Ip6 => v6.contains(&true),
        Family::Arp | Family::Netdev | Family::Bridge => false,
    };
    let tables = || netfilter.tables.iter().filter(|table| sees(table.family));
    let of_forward = |base: &&BaseChain| base.drops && base.hook == Some(ChainHook::Forward);
    let mut policies: Vec<_> = tables()
        .flat_map(|table| table.base.iter().filter(of_forward).map(move |base| (table, base)))
        .collect();
    policies.sort_by_key(|(_, base)| base.rules);
    let policies = policies.into_iter().map(|(table, base)| End { table, by: By::Policy(base) });
    let meant = |rule: &&Blocker| rule.matches.v6.is_none_or(|own| v6.contains(&own));
    let rules = tables().flat_map(|table| {
        table.barriers.iter().filter(meant).map(move |rule| End { table, by: By::Rule(rule) })
    });
    policies.chain(rules).collect()
}
