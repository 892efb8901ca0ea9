//! The answer to RTM_GETROUTE for one address.
#![no_main]

use overlaywatch::source::lookups::translate;

libfuzzer_sys::fuzz_target!(|payload: &[u8]| {
    let _ = translate::answer(payload);
});
