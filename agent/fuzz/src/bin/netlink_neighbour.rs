//! RTM_NEWNEIGH, which tells of neighbours and of forwarding entries.
#![no_main]

use overlaywatch::source::rtnetlink::translate;

libfuzzer_sys::fuzz_target!(|payload: &[u8]| {
    let neighbour = translate::neighbour(payload);
    let fdb = translate::fdb(payload);
    // One message is about one of the two.
    assert!(!matches!((neighbour, fdb), (Ok(Some(_)), Ok(Some(_)))));
});
