//! RTM_NEWLINK, its VXLAN and IPIP attributes included.
#![no_main]

use overlaywatch::source::rtnetlink::translate;

libfuzzer_sys::fuzz_target!(|payload: &[u8]| {
    let _ = translate::link(payload);
});
