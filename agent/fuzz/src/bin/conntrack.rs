//! CTNETLINK's answers: the table's size, its counters and its entries; and the
//! file that counters are read from elsewhere.
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
    if let Ok(text) = std::str::from_utf8(payload) {
        let _ = translate::counters(text);
    }
});
