//! Packets of a preflight: one that is read as ours is so again when it is built from its mark.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlaywatch_core::preflight::packet::{Ends, SMALL_BYTES, build, read};

const NODES: [[IpAddr; 2]; 2] = [
    [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2))],
    [
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
    ],
];

libfuzzer_sys::fuzz_target!(|packet: &[u8]| {
    let Some(mark) = read(packet) else { return };
    for [from, to] in NODES {
        let ends = Ends { from, to, pods: Some((from, to)) };
        let again = build(&ends, mark, SMALL_BYTES);
        assert_eq!(again.as_deref().and_then(read), Some(mark));
    }
});
