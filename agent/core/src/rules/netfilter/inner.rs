//! What rules do to packets inside of a tunnel: those that connection tracking
//! does not see, and those that pods are not told of.

use super::live;
use super::{Context, MOST_NAMED, Verdicts, finding, is_of_netfilter, thing};
use crate::catalog::Code;
use crate::finding::{Confidence, Direction, Evidence, Filtered, Finding, Thing};
use crate::kernel::{DropForm, KernelCounts, PacketDrop};
use crate::ladder::{Hop, Segment};
use crate::model::{Blocker, ChainHook, Family, Netfilter, NftTable, Peer, PeerTunnel, Untracking};

/// Packets of pods in the last seconds that were too big, below which nothing is
/// said: one that is told sends smaller ones after the first.
const TOO_BIG: u64 = 10;
/// And of the packets to that peer so many of a hundred.
const TOO_BIG_PERCENT: u64 = 10;
/// EtherType of IPv6.
const IPV6: u16 = 0x86dd;

pub(super) fn judge(
    context: &Context<'_>,
    netfilter: &Netfilter,
    counts: &KernelCounts,
    verdicts: &mut Verdicts,
) {
    let mut found = Vec::new();
    for (peer, leads, _) in context.tunnelled_peers() {
        let is_nic = |name: &str| context.is_underlay(name);
        untracked(netfilter, counts, (peer, leads), is_nic, &mut found);
        too_big(netfilter, counts, (peer, leads), &mut found);
    }
    found.into_iter().for_each(|finding| verdicts.add(finding));
}

/// Adds to what is known of the same rule.
fn add(found: &mut Vec<Finding>, finding: Finding) {
    match found.iter_mut().find(|known| known.key() == finding.key()) {
        Some(known) if known.evidence.len() <= MOST_NAMED => {
            known.evidence.extend(finding.evidence.into_iter().skip(1));
        }
        Some(_) => {}
        None => found.push(finding),
    }
}

/// Nearly all that comes from a peer is dropped, and is not tracked.
fn untracked(
    netfilter: &Netfilter,
    counts: &KernelCounts,
    (peer, leads): (&Peer, &PeerTunnel),
    is_nic: impl Fn(&str) -> bool,
    found: &mut Vec<Finding>,
) {
    let Some(dropped) = live::dropped(counts, peer, leads, false, is_nic) else { return };
    if !is_of_netfilter(&dropped.worst.site) {
        return;
    }
    let is_meant = |rule: &&Untracking| {
        let is_of_device = match &rule.matches.in_device {
            Some(device) => *device == leads.device,
            // One that names nothing else means everything.
            None => rule.matches.protocol.is_none() && !rule.matches.more,
        };
        is_of_device && rule.hooks.contains(&ChainHook::Prerouting)
    };
    let of_tables = tables(netfilter, dropped.worst.ethertype == IPV6);
    let mut rules =
        of_tables.flat_map(|table| table.untracking.iter().map(move |rule| (table, rule)));
    let Some((table, rule)) = rules.find(|(_, rule)| is_meant(rule)) else { return };
    let evidence = vec![
        Evidence::Netfilter(Filtered::Untracks {
            table: table.title(),
            at: rule.at.clone(),
            hooks: rule.hooks.clone(),
            matches: rule.matches.clone(),
            owner: table.owner,
        }),
        here(dropped.worst, dropped.packets),
    ];
    let subject = thing(Thing::Chain, format!("{} {}", table.title(), rule.at.chain));
    add(
        found,
        Finding {
            direction: Some(Direction::Inbound),
            hop: Some(Segment { from: Hop::Decapsulated, to: Hop::Delivered }),
            confidence: Confidence::High,
            ..finding(Code::UntrackedInner, subject, evidence)
        },
    );
}

/// Packets to a peer are too big again and again, and a rule drops what tells
/// their senders.
fn too_big(
    netfilter: &Netfilter,
    counts: &KernelCounts,
    (peer, leads): (&Peer, &PeerTunnel),
    found: &mut Vec<Finding>,
) {
    let drops = counts.drops.iter().filter(|drop| {
        drop.form == DropForm::Inner
            && drop.probe.is_none()
            && drop.peer == Some(peer.id)
            && drop.outbound
            && drop.site.reason.as_deref() == Some("PKT_TOO_BIG")
    });
    let packets = drops.clone().fold(0, |sum: u64, drop| sum.saturating_add(drop.lately));
    let to_peer = counts.traffic.iter().filter(|traffic| {
        traffic.peer == peer.id.0
            && traffic.encapsulation == leads.encapsulation
            && traffic.outbound
    });
    let all = to_peer.fold(packets, |sum, traffic| sum.saturating_add(traffic.lately));
    let Some(worst) = drops.max_by_key(|drop| drop.lately) else { return };
    if packets < TOO_BIG || packets.saturating_mul(100) < all.saturating_mul(TOO_BIG_PERCENT) {
        return;
    }
    let of_tables = tables(netfilter, worst.ethertype == IPV6);
    let mut rules =
        of_tables.flat_map(|table| table.silencers.iter().map(move |rule| (table, rule)));
    let Some((table, rule)) = rules.find(|(_, rule)| silences(rule, worst)) else { return };
    let evidence = vec![
        Evidence::Netfilter(Filtered::ByRule {
            table: table.title(),
            at: rule.at.clone(),
            hooks: rule.hooks.clone(),
            matches: rule.matches.clone(),
            rejects: rule.rejects,
            packets: rule.packets,
            owner: table.owner,
        }),
        here(worst, packets),
    ];
    let subject = thing(Thing::Chain, format!("{} {}", table.title(), rule.at.chain));
    add(
        found,
        Finding {
            direction: Some(Direction::Outbound),
            hop: Some(Segment { from: Hop::Sent, to: Hop::Encapsulated }),
            confidence: Confidence::High,
            ..finding(Code::IcmpTooBigFiltered, subject, evidence)
        },
    );
}

/// Whether the error about a packet meets this rule: it is this node's own, and
/// leaves by where the packet came from.
fn silences(rule: &Blocker, about: &PacketDrop) -> bool {
    let Blocker { hooks, matches, .. } = rule;
    let protocol = if about.ethertype == IPV6 { 58 } else { 1 };
    hooks.iter().any(|hook| matches!(hook, ChainHook::Output | ChainHook::Postrouting))
        && matches.protocol == Some(protocol)
        && matches.source.is_none()
        && matches.destination.is_none()
        && (matches.out_device.is_none() || matches.out_device == about.site.device)
}

fn here(worst: &PacketDrop, packets: u64) -> Evidence {
    Evidence::KernelDropped { here: true, site: worst.site.clone(), packets }
}

/// Tables that see inner packets of this family.
fn tables(netfilter: &Netfilter, v6: bool) -> impl Iterator<Item = &NftTable> {
    netfilter.tables.iter().filter(move |table| match table.family {
        Family::Inet => true,
        Family::Ip => !v6,
        Family::Ip6 => v6,
        Family::Arp | Family::Netdev | Family::Bridge => false,
    })
}

#[cfg(test)]
mod tests;
