//! Packets of peers that this node's kernel drops for a wrong checksum.

use std::collections::BTreeMap;

use super::{Context, Verdicts};
use crate::catalog::Code;
use crate::finding::{Confidence, Direction, Evidence, Finding, Subject};
use crate::kernel::{DropForm, PacketDrop};
use crate::ladder::{Hop, Segment};

/// The kernel's drop reasons (include/net/dropreason-core.h); a wrong header of IP
/// itself is no matter of offloads.
const REASONS: [&str; 2] = ["UDP_CSUM", "TCP_CSUM"];
/// Packets in the last seconds that are no accident: a cable flips a bit now and
/// then, and the link's own checksum nearly always notices.
const PACKETS: u64 = 3;

pub(super) fn judge(context: &Context<'_>, verdicts: &mut Verdicts) {
    let Some(counts) = context.now.kernel.seen() else {
        return verdicts.blind(&[Code::ChecksumErrors]);
    };
    let mut by_device: BTreeMap<&str, (u64, &PacketDrop)> = BTreeMap::new();
    // Whoever sends a wrong packet from elsewhere is no peer.
    let wrong = counts.drops.iter().filter(|drop| {
        drop.lately > 0
            && drop.peer.is_some()
            && !drop.outbound
            && drop.site.reason.as_deref().is_some_and(|reason| REASONS.contains(&reason))
    });
    for drop in wrong {
        let Some(device) = drop.site.device.as_deref() else { continue };
        let (packets, worst) = by_device.entry(device).or_insert((0, drop));
        *packets = packets.saturating_add(drop.lately);
        if drop.lately > worst.lately {
            *worst = drop;
        }
    }
    for (device, (packets, worst)) in by_device {
        if packets < PACKETS {
            continue;
        }
        let hop = match worst.form {
            DropForm::Outer => Segment { from: Hop::ReachedNic, to: Hop::Decapsulated },
            DropForm::Inner => Segment { from: Hop::Decapsulated, to: Hop::Delivered },
            DropForm::Bare => Segment { from: Hop::ReachedNic, to: Hop::Delivered },
        };
        let mut evidence =
            vec![Evidence::KernelDropped { here: true, site: worst.site.clone(), packets }];
        evidence.extend(grown(context));
        let nics = counts.nics.iter().filter(|nic| nic.device == device);
        evidence.extend(nics.cloned().map(Evidence::Nic));
        verdicts.add(Finding {
            code: Code::ChecksumErrors,
            subject: Subject::Device { name: device.to_owned() },
            direction: Some(Direction::Inbound),
            hop: Some(hop),
            evidence,
            confidence: Confidence::Certain,
        });
    }
}

/// How many UDP packets with a wrong checksum this node took in lately.
fn grown(context: &Context<'_>) -> Option<Evidence> {
    let now = context.now.host.seen()?.counters.udp_in_csum_errors;
    let before = context.delta.before?.host.seen()?.counters.udp_in_csum_errors;
    let by = now.checked_sub(before).filter(|by| *by > 0)?;
    Some(Evidence::Grew { counter: "UdpInCsumErrors".to_owned(), by })
}
