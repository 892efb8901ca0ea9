//! What the kernel's programs counted, summed up over peers and streams.

use std::collections::BTreeMap;

use overlaywatch_core::kernel::KernelCounts;

use super::{Sheet, families, float};

/// Places that dropped packets which have a series each.
const DROP_SERIES: usize = 24;

pub(super) fn fill(sheet: &mut Sheet, counts: &KernelCounts) {
    sheet.add(&families::HOOKED_DEVICES, &[], float(counts.devices.len() as u64));
    let mut drops: BTreeMap<_, u64> = BTreeMap::new();
    for drop in &counts.drops {
        let (reason, function) = (&drop.site.reason, &drop.site.function);
        *drops.entry((drop.form.slug(), reason, function)).or_default() += drop.total;
    }
    let mut drops: Vec<_> = drops.into_iter().collect();
    drops.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    for ((form, reason, function), count) in drops.into_iter().take(DROP_SERIES) {
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "unknown".to_owned());
        let (reason, function) = (name(reason), name(function));
        sheet.add(&families::KERNEL_DROPS, &[form, &reason, &function], float(count));
    }
    let mut errors: BTreeMap<_, u64> = BTreeMap::new();
    for error in &counts.icmp {
        *errors.entry((error.encapsulation, error.kind, error.code)).or_default() += error.total;
    }
    for ((encapsulation, kind, code), count) in errors {
        let labels = [encapsulation.to_string(), kind.to_string(), code.to_string()];
        sheet.add(&families::KERNEL_ICMP, &labels.each_ref().map(String::as_str), float(count));
    }
    let mut traffic: BTreeMap<_, [u64; 3]> = BTreeMap::new();
    for one in &counts.traffic {
        let sum = traffic.entry((one.encapsulation, one.outbound)).or_default();
        for (sum, count) in sum.iter_mut().zip([one.packets, one.bytes, one.fragments]) {
            *sum += count;
        }
    }
    for ((encapsulation, outbound), [packets, bytes, fragments]) in traffic {
        let encapsulation = encapsulation.to_string();
        let labels = [encapsulation.as_str(), if outbound { "outbound" } else { "inbound" }];
        sheet.add(&families::TRAFFIC_PACKETS, &labels, float(packets));
        sheet.add(&families::TRAFFIC_BYTES, &labels, float(bytes));
        sheet.add(&families::TRAFFIC_FRAGMENTS, &labels, float(fragments));
    }
}
