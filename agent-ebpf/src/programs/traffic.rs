//! Encapsulated traffic: one slot or map entry for each peer, encapsulation and way.

use aya_ebpf::bindings::__sk_buff;
use overlaywatch_ebpf::{Slot, Slots, Traffic, TrafficKey, direction, encapsulation, missed};

use crate::maps::{SLOTS, TRAFFIC, miss};

/// Counts an outer packet.
#[inline(always)]
pub fn count(skb: &__sk_buff, key: TrafficKey, is_first: bool, is_probe: bool) {
    let packets = u64::from(skb.gso_segs.max(1));
    let bytes = u64::from(skb.len);
    let (fragments, probes) = (u64::from(is_first), u64::from(is_probe));
    match slot(&key) {
        Some(slot) if is_of(slot, &key) => {
            add(&mut slot.traffic, packets, bytes, fragments, probes)
        }
        // The key is copied so that only this way has it in memory.
        _ => count_elsewhere(&TrafficKey { ..key }, packets, bytes, fragments, probes),
    }
}

/// Counts a packet that has no slot yet: takes the slot if that is free, and
/// resorts to the map if not. Probes go to every peer and take no slot from
/// those that have more to count. Apart, so that the usual way stays short.
#[inline(never)]
fn count_elsewhere(key: &TrafficKey, packets: u64, bytes: u64, fragments: u64, probes: u64) {
    let free =
        slot(key).filter(|slot| probes == 0 && slot.key.encapsulation == encapsulation::NONE);
    if let Some(slot) = free {
        slot.key = *key;
        add(&mut slot.traffic, packets, bytes, fragments, probes);
    } else if let Some(traffic) = TRAFFIC.get_ptr_mut(key) {
        // SAFETY: this processor's own value of a per-CPU map.
        add(unsafe { &mut *traffic }, packets, bytes, fragments, probes);
    } else if TRAFFIC.insert(key, &Traffic { packets, bytes, fragments, probes }, 0).is_err() {
        miss(missed::TRAFFIC);
    }
}

/// The slot that a key may have.
#[inline(always)]
fn slot(key: &TrafficKey) -> Option<&'static mut Slot> {
    let slots = SLOTS.get_ptr_mut(u32::from(key.direction == direction::EGRESS))?;
    // SAFETY: this processor's own element of a per-CPU array.
    unsafe { (*slots).0.get_mut(Slots::index(&key.peer)) }
}

/// Whether it has it.
#[inline(always)]
fn is_of(slot: &Slot, key: &TrafficKey) -> bool {
    let ([a, b, c, d], [e, f, g, h]) = (slot.key.peer.0, key.peer.0);
    // One comparison for all words: they are almost always the same.
    (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
        && slot.key.port == key.port
        && slot.key.encapsulation == key.encapsulation
}

#[inline(always)]
fn add(traffic: &mut Traffic, packets: u64, bytes: u64, fragments: u64, probes: u64) {
    traffic.packets = traffic.packets.wrapping_add(packets);
    traffic.bytes = traffic.bytes.wrapping_add(bytes);
    traffic.fragments = traffic.fragments.wrapping_add(fragments);
    traffic.probes = traffic.probes.wrapping_add(probes);
}
