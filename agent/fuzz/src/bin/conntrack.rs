//! CTNETLINK's answers: the table's size, its counters and its entries.
#![no_main]

use overlaywatch::source::conntrack::translate;
use overlaywatch_core::model::ConntrackCounters;

libfuzzer_sys::fuzz_target!(|payload: &[u8]| {
    let _ = translate::size(payload);
    let _ = translate::entry(payload);
    let mut counters = ConntrackCounters::default();
    // A second message of the same kind adds to the first.
    let _ = translate::count(payload, &mut counters);
    let _ = translate::count(payload, &mut counters);
});
