//! One datagram as every subject reads it, without a socket: for fuzzing and
//! for nothing else. It goes through the same framing, translation and
//! book-keeping as a datagram of the kernel.

use std::collections::BTreeMap;

use overlaywatch_core::assembly::{Change, Update};

use super::dump::digest;
use super::feed::{Common, Feed};
use super::feeds::{Addresses, Fdb, Links, Neighbours, Routes, Rules};
use super::follow::take;
use crate::source::wire::messages;

/// What the assembly is told when `datagram` is all that each subject's dump
/// gives, and when it then comes again as events.
#[must_use]
pub fn updates(datagram: &[u8]) -> Vec<Update> {
    let mut common = Common::default();
    let mut updates = Vec::new();
    // Links first, as in a real round: they say whose the forwarding entries are.
    read::<Links>(datagram, &mut common, &mut updates);
    read::<Addresses>(datagram, &mut common, &mut updates);
    read::<Routes>(datagram, &mut common, &mut updates);
    read::<Rules>(datagram, &mut common, &mut updates);
    read::<Neighbours>(datagram, &mut common, &mut updates);
    read::<Fdb>(datagram, &mut common, &mut updates);
    updates
}

fn read<F: Feed>(datagram: &[u8], common: &mut Common, updates: &mut Vec<Update>) {
    let mut feed = F::default();
    for request in F::REQUESTS {
        if let Ok(mut all) = digest(*request, datagram, F::translate) {
            feed.dumped(&mut all, common);
            updates.push(F::update(Change::Replace(all)));
        }
    }
    let mut pending = BTreeMap::new();
    for message in messages(datagram).map_while(Result::ok) {
        take(&mut feed, &mut pending, message, common);
    }
    let changes = pending.into_iter();
    updates.extend(
        changes.map(|(key, value)| F::update(value.map_or(Change::Remove(key), Change::Upsert))),
    );
}
