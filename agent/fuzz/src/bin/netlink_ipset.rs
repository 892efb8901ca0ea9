//! Answers of the ipset subsystem: sets, and revisions of types.
#![no_main]

use overlaywatch::source::ipset::translate;

libfuzzer_sys::fuzz_target!(|payload: &[u8]| {
    if let Ok(Some(set)) = translate::set(payload) {
        // Names are printed as they are.
        assert!(!set.name.is_empty() && !set.name.chars().any(char::is_control));
        assert!(!set.kind.is_empty() && !set.kind.chars().any(char::is_control));
    }
    if let Ok(revisions) = translate::revisions(payload) {
        assert!(revisions.min <= revisions.max);
    }
});
