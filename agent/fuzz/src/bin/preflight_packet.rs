//! Packets of a preflight: one that is read as ours is so again when it is built from its mark.
#![no_main]

use std::net::Ipv4Addr;

use overlaywatch_core::preflight::packet::{Ends, SMALL_BYTES, build, read};

const NODES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];

libfuzzer_sys::fuzz_target!(|packet: &[u8]| {
    let Some(mark) = read(packet) else { return };
    let [from, to] = NODES;
    let ends = Ends { from, to, pods: Some((from, to)) };
    let again = build(&ends, mark, SMALL_BYTES);
    assert_eq!(again.as_deref().and_then(read), Some(mark));
});
