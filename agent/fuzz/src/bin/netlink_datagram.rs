//! Whole datagrams of rtnetlink: framing, dumps, events, and the state that
//! the assembly makes of them.
#![no_main]

use overlaywatch::source::rtnetlink::datagram;
use overlaywatch_core::assembly::Assembly;
use overlaywatch_core::policy::Policy;
use overlaywatch_core::snapshot::NodeIdentity;
use overlaywatch_core::time::{Mono, Now};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut assembly = Assembly::new(NodeIdentity::default(), None, Policy::default());
    for update in datagram::updates(bytes) {
        assembly.fold(update, Mono::default());
    }
    let _ = assembly.freeze(Now::default());
});
