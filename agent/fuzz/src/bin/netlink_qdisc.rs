//! RTM_NEWQDISC payloads.
#![no_main]

use overlaywatch::source::traffic::translate;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(qdisc)) = translate::qdisc(bytes) {
        assert!(qdisc.kind.chars().count() <= 16);
    }
});
