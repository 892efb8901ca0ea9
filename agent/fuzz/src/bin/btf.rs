//! RTM_NEWRULE.
#![no_main]

use overlaywatch::source::rtnetlink::translate;

libfuzzer_sys::fuzz_target!(|payload: &[u8]| {
    let _ = translate::rule(payload);
});
