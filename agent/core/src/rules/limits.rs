//! What the kernel of this machine has no room for: neighbours, and packets that
//! a CPU is to receive.

use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::finding::{Confidence, Direction, Evidence, Finding, Subject};
use crate::kernel::{DropForm, DropSite, PacketDrop};
use crate::ladder::{Hop, Segment};
use crate::model::Host;

/// Refusals and drops in the last seconds that are no accident.
const FEW: u64 = 3;

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let Some(host) = context.now.host.seen() else {
        return verdicts.blind(&[Code::NeighbourTableOverflow, Code::SoftirqBacklog]);
    };
    let before = context.delta.before.and_then(|before| before.host.seen());
    if let Some(before) = before {
        neighbours(context, host, before, verdicts);
    }
    match context.now.kernel.seen() {
        Some(counts) => backlog(&counts.drops, host, before.map(AsRef::as_ref), verdicts),
        None => verdicts.blind(&[Code::SoftirqBacklog]),
    }
}

/// A table that refused new entries.
fn neighbours(context: &Context<'_>, host: &Host, before: &Host, verdicts: &mut Verdicts) {
    let mut evidence = Vec::new();
    for table in &host.neighbour_tables {
        let same = before.neighbour_tables.iter().find(|other| other.v6 == table.v6);
        let refused = same.and_then(|other| table.refused.checked_sub(other.refused));
        let Some(refused) = refused.filter(|refused| *refused >= FEW) else { continue };
        evidence.push(Evidence::NeighbourTable {
            v6: table.v6,
            entries: table.entries,
            limit: table.limit,
            refused,
        });
    }
    if evidence.is_empty() {
        return;
    }
    let counts = context.now.kernel.seen();
    let drops = counts.into_iter().flat_map(|counts| &counts.drops);
    let dropped: Vec<&PacketDrop> =
        drops.filter(|drop| drop.lately > 0 && is(&drop.site, "NEIGH_CREATEFAIL")).collect();
    let worst = dropped.iter().max_by_key(|drop| drop.lately);
    evidence.extend(worst.map(|drop| Evidence::KernelDropped {
        here: true,
        site: drop.site.clone(),
        packets: drop.lately,
    }));
    // Who is received needs no neighbour, but the pod does that it is for.
    let (direction, hop) = match dropped.iter().filter(|drop| !drop.outbound).count() {
        0 => (Direction::Outbound, Some(Segment { from: Hop::Sent, to: Hop::LeftNic })),
        all if all == dropped.len() => {
            (Direction::Inbound, Some(Segment { from: Hop::Decapsulated, to: Hop::Delivered }))
        }
        _ => (Direction::Both, None),
    };
    verdicts.add(Finding {
        code: Code::NeighbourTableOverflow,
        subject: Subject::Node,
        direction: Some(direction),
        hop,
        evidence,
        confidence: Confidence::Certain,
    });
}

/// Packets of peers that came while a CPU's backlog was full. What the whole
/// machine dropped may be anybody's, and is evidence alone.
fn backlog(drops: &[PacketDrop], host: &Host, before: Option<&Host>, verdicts: &mut Verdicts) {
    let full = drops
        .iter()
        .filter(|drop| drop.lately > 0 && drop.peer.is_some() && is(&drop.site, "CPU_BACKLOG"));
    let packets = full.clone().fold(0_u64, |sum, drop| sum.saturating_add(drop.lately));
    let Some(worst) = full.max_by_key(|drop| drop.lately).filter(|_| packets >= FEW) else {
        return;
    };
    let mut evidence =
        vec![Evidence::KernelDropped { here: true, site: worst.site.clone(), packets }];
    let grown = before.and_then(|before| {
        Some(Evidence::Backlog {
            dropped: host.softnet_dropped.checked_sub(before.softnet_dropped)?,
            squeezed: host.softnet_squeezed.checked_sub(before.softnet_squeezed)?,
        })
    });
    evidence.extend(grown);
    // A tunnel device, too, has packets wait for a CPU.
    let (direction, hop) = match (worst.form, worst.outbound) {
        (DropForm::Outer, false) => {
            (Direction::Inbound, Segment { from: Hop::ReachedNic, to: Hop::Decapsulated })
        }
        (DropForm::Inner, false) => {
            (Direction::Inbound, Segment { from: Hop::ReachedNic, to: Hop::Delivered })
        }
        (DropForm::Bare, false) => {
            (Direction::Inbound, Segment { from: Hop::ReachedNic, to: Hop::Delivered })
        }
        (_, true) => (Direction::Outbound, Segment { from: Hop::Sent, to: Hop::LeftNic }),
    };
    verdicts.add(Finding {
        code: Code::SoftirqBacklog,
        subject: Subject::Node,
        direction: Some(direction),
        hop: Some(hop),
        evidence,
        confidence: Confidence::Certain,
    });
}

/// Whether the kernel gave that reason.
fn is(site: &DropSite, reason: &str) -> bool {
    site.reason.as_deref() == Some(reason)
}
