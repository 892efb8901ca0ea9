//! What others' programs and full queues drop on this node's devices.

use std::collections::BTreeMap;

use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::finding::{Confidence, Direction, Evidence, Finding, Subject, Thing};
use crate::kernel::{DropForm, DropSite, ForeignProgram, KernelCounts, PacketDrop};
use crate::ladder::{Hop, Segment};
use crate::probing::Stream;

/// Probes that must have been dropped lately: of live traffic programs may drop
/// what they please (a network policy), of probes nothing.
const PROBES: u64 = 3;

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let Some(counts) = context.now.kernel.seen() else {
        return verdicts.blind(&[
            Code::ForeignProgramDrops,
            Code::QdiscDrops,
            Code::CiliumProgramTwice,
        ]);
    };
    for (reason, is_ingress) in [("TC_INGRESS", true), ("TC_EGRESS", false)] {
        for (device, (packets, form)) in dropped(counts, |site| is_because(site, reason)) {
            let is_it = |it: &&ForeignProgram| {
                it.device == device && it.is_ingress == is_ingress && !it.is_xdp()
            };
            // Of several, any may be the one: the first is named, the others are evidence.
            let programs: Vec<_> = counts.foreign.iter().filter(is_it).collect();
            if let Some(finding) = by_programs(&programs, packets, form) {
                verdicts.add(finding);
            }
        }
    }
    for (device, (packets, form)) in dropped(counts, DropSite::is_of_xdp) {
        let is_it = |it: &&ForeignProgram| it.device == device && it.is_xdp();
        let programs: Vec<_> = counts.foreign.iter().filter(is_it).collect();
        if let Some(finding) = by_programs(&programs, packets, form) {
            verdicts.add(finding);
        }
    }
    for (device, (packets, form)) in dropped(counts, |site| is_because(site, QUEUE_FULL)) {
        verdicts.add(by_queue(context, device, packets, form));
    }
    starved(context, counts, verdicts);
    twice(counts, verdicts);
}

/// The kernel's drop reason of queues.
const QUEUE_FULL: &str = "QDISC_DROP";

fn is_because(site: &DropSite, reason: &str) -> bool {
    site.reason.as_deref() == Some(reason)
}

/// Probes that were dropped lately in such places: by device how many, and what
/// they were.
fn dropped(
    counts: &KernelCounts,
    is_it: impl Fn(&DropSite) -> bool,
) -> BTreeMap<&str, (u64, DropForm)> {
    let mut sums: BTreeMap<&str, (u64, DropForm)> = BTreeMap::new();
    for drop in counts.drops.iter().filter(|drop| drop.probe.is_some() && is_it(&drop.site)) {
        let Some(device) = drop.site.device.as_deref() else { continue };
        let (sum, form) = sums.entry(device).or_insert((0, drop.form));
        *sum = sum.saturating_add(drop.lately);
        // Where both are dropped, the way of those without a tunnel covers the other.
        *form = (*form).max(drop.form);
    }
    sums.retain(|_, (sum, _)| *sum >= PROBES);
    sums
}

/// Peers that nothing gets through to because of a full queue. The kernel tells
/// the sender so, who therefore counts no loss of the path.
fn starved(context: &Context<'_>, counts: &KernelCounts, verdicts: &mut Verdicts) {
    for (peer, leads, _) in context.tunnelled_peers() {
        let stream = Stream::Small(leads.encapsulation);
        let is_answered =
            context.stream(peer, stream).is_none_or(|view| context.answered_lately(view));
        let of_probes = |drop: &&PacketDrop| {
            drop.peer == Some(peer.id)
                && drop.probe == Some((stream, false))
                && drop.outbound
                && is_because(&drop.site, QUEUE_FULL)
        };
        let mut drops = counts.drops.iter().filter(of_probes);
        let Some(worst) = drops.clone().max_by_key(|drop| drop.lately) else { continue };
        let packets = drops.by_ref().fold(0_u64, |sum, drop| sum.saturating_add(drop.lately));
        if is_answered || packets < PROBES {
            continue;
        }
        let (direction, hop) = place(false, worst.form);
        verdicts.add(Finding {
            code: Code::LocalOutputDrop,
            subject: Subject::Pair { peer: peer.id, encapsulation: Some(leads.encapsulation) },
            direction: Some(direction),
            hop: Some(hop),
            evidence: vec![Evidence::KernelDropped {
                here: true,
                site: worst.site.clone(),
                packets,
            }],
            confidence: Confidence::Certain,
        });
    }
}

/// What names of Cilium's programs begin with (bpf/bpf_host.c, bpf_overlay.c).
const CILIUM: &str = "cil_";
/// Longer names the kernel does not keep (`BPF_OBJ_NAME_LEN`).
const NAME_BYTES: usize = 15;

/// Programs of Cilium that are on one side of a device more than once.
fn twice(counts: &KernelCounts, verdicts: &mut Verdicts) {
    let mut hooks: BTreeMap<(&str, bool, &str), Vec<&ForeignProgram>> = BTreeMap::new();
    for program in &counts.foreign {
        // A filter's name has the device's behind it: "cil_from_netdev-eth0".
        let name = program.name.as_deref().and_then(|name| name.split('-').next());
        let Some(name) = name.filter(|name| name.starts_with(CILIUM)) else { continue };
        let name = name.get(..NAME_BYTES).unwrap_or(name);
        hooks.entry((&program.device, program.is_ingress, name)).or_default().push(program);
    }
    for ((device, _, name), programs) in hooks {
        let [first, _, ..] = programs.as_slice() else { continue };
        let twice =
            |program: &&ForeignProgram| Evidence::ProgramTwice { program: (*program).clone() };
        verdicts.add(Finding {
            code: Code::CiliumProgramTwice,
            subject: Subject::Thing {
                what: Thing::Program,
                name: format!("{device} {} {name}", first.side()),
            },
            direction: None,
            hop: None,
            evidence: programs.iter().map(twice).collect(),
            confidence: Confidence::Certain,
        });
    }
}

/// Adds to what is lost on the wire before this node's NIC the XDP programs there
/// that would drop it without a trace.
pub(super) fn testify(context: &Context<'_>, verdicts: &mut Verdicts) {
    let Some(counts) = context.now.kernel.seen() else { return };
    let tunnels = context.now.tunnels.seen();
    let is_tunnel = |name: &str| tunnels.is_some_and(|all| all.iter().any(|t| t.name == name));
    let programs: Vec<_> =
        counts.foreign.iter().filter(|it| it.is_silent() && !is_tunnel(&it.device)).collect();
    if programs.is_empty() {
        return;
    }
    let wire = Segment { from: Hop::LeftNic, to: Hop::ReachedNic };
    for finding in &mut verdicts.findings {
        let is_loss = matches!(
            finding.code,
            Code::EncapsulationLost
                | Code::OverlayLoss
                | Code::UnderlayLoss
                | Code::MtuBlackhole
                | Code::PeerUnreachable
                | Code::NodeIsolated
        );
        let comes_in = finding.direction != Some(Direction::Outbound);
        let is_there = finding.hop.is_none_or(|hop| hop.overlaps(wire));
        if is_loss && comes_in && is_there {
            finding
                .evidence
                .extend(programs.iter().map(|&it| Evidence::ProgramUnseen { program: it.clone() }));
        }
    }
}

fn by_programs(programs: &[&ForeignProgram], packets: u64, form: DropForm) -> Option<Finding> {
    let first = programs.first()?;
    let (direction, hop) = place(first.is_ingress, form);
    let dropped = |program: &&ForeignProgram| Evidence::ProgramDropped {
        program: (*program).clone(),
        packets,
    };
    Some(Finding {
        code: Code::ForeignProgramDrops,
        subject: Subject::Thing { what: Thing::Program, name: first.to_string() },
        direction: Some(direction),
        hop: Some(hop),
        evidence: programs.iter().map(dropped).collect(),
        confidence: if programs.len() == 1 { Confidence::Certain } else { Confidence::High },
    })
}

fn by_queue(context: &Context<'_>, device: &str, packets: u64, form: DropForm) -> Finding {
    let (direction, hop) = place(false, form);
    let links = context.now.links.seen();
    let index = links.and_then(|links| links.values().find(|link| link.name == device));
    let traffic = context.now.traffic.seen();
    let qdisc = index
        .zip(traffic)
        .and_then(|(link, traffic)| traffic.qdiscs.iter().find(|qdisc| qdisc.index == link.index));
    Finding {
        code: Code::QdiscDrops,
        subject: Subject::Device { name: device.to_owned() },
        direction: Some(direction),
        hop: Some(hop),
        evidence: vec![Evidence::QdiscDropped {
            device: device.to_owned(),
            qdisc: qdisc.map(|qdisc| qdisc.kind.clone()),
            packets,
            total: qdisc.map_or(0, |qdisc| qdisc.drops),
        }],
        confidence: Confidence::Certain,
    }
}

/// Where packets vanish that a device's hook or queue drops: those inside a
/// tunnel on the tunnel device, the others on the NIC.
const fn place(is_ingress: bool, form: DropForm) -> (Direction, Segment) {
    let (from, to) = match (is_ingress, form) {
        (true, DropForm::Outer) => (Hop::ReachedNic, Hop::Decapsulated),
        (true, DropForm::Inner) => (Hop::Decapsulated, Hop::Delivered),
        (true, DropForm::Bare) => (Hop::ReachedNic, Hop::Delivered),
        (false, DropForm::Outer) => (Hop::Encapsulated, Hop::LeftNic),
        // Our program on the tunnel device may have seen it, or not yet.
        (false, DropForm::Inner | DropForm::Bare) => (Hop::Sent, Hop::LeftNic),
    };
    let direction = if is_ingress { Direction::Inbound } else { Direction::Outbound };
    (direction, Segment { from, to })
}

#[cfg(test)]
mod tests;
