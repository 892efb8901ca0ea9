//! What others' programs and full queues drop on this node's devices.

use std::collections::BTreeMap;

use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::finding::{Confidence, Direction, Evidence, Finding, Subject, Thing};
use crate::kernel::{DropForm, ForeignProgram, KernelCounts};
use crate::ladder::{Hop, Segment};

/// Probes that must have been dropped lately: of live traffic programs may drop
/// what they please (a network policy), of probes nothing.
const PROBES: u64 = 3;

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let Some(counts) = context.now.kernel.seen() else {
        return verdicts.blind(&[Code::ForeignProgramDrops, Code::QdiscDrops]);
    };
    let by_ingress = dropped(counts, "TC_INGRESS");
    let by_egress = dropped(counts, "TC_EGRESS");
    for (drops, is_ingress) in [(by_ingress, true), (by_egress, false)] {
        for (device, (packets, form)) in drops {
            let is_it = |it: &&ForeignProgram| it.device == device && it.is_ingress == is_ingress;
            // Of several, any may be the one: the first is named, the others are evidence.
            let programs: Vec<_> = counts.foreign.iter().filter(is_it).collect();
            if let Some(finding) = by_programs(&programs, packets, form) {
                verdicts.add(finding);
            }
        }
    }
    for (device, (packets, form)) in dropped(counts, "QDISC_DROP") {
        verdicts.add(by_queue(context, device, packets, form));
    }
}

/// Probes that were dropped lately for this reason: by device how many, and what
/// they were.
fn dropped<'a>(counts: &'a KernelCounts, reason: &str) -> BTreeMap<&'a str, (u64, DropForm)> {
    let mut sums: BTreeMap<&str, (u64, DropForm)> = BTreeMap::new();
    for drop in &counts.drops {
        let is_it = drop.site.reason.as_deref() == Some(reason) && drop.probe.is_some();
        let Some(device) = drop.site.device.as_deref().filter(|_| is_it) else { continue };
        let (sum, form) = sums.entry(device).or_insert((0, drop.form));
        *sum = sum.saturating_add(drop.lately);
        // Where both are dropped, the way of those without a tunnel covers the other.
        *form = (*form).max(drop.form);
    }
    sums.retain(|_, (sum, _)| *sum >= PROBES);
    sums
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
