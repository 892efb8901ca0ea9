//! RTM_NEWROUTE, whose attributes and next hops are walked by hand.
#![no_main]

use overlaywatch::source::rtnetlink::translate;

libfuzzer_sys::fuzz_target!(|payload: &[u8]| {
    let _ = translate::route(payload);
});
