//! Peers as Prometheus file_sd JSON: one entry an address, in order.
#![no_main]

use std::path::Path;

use overlaywatch::config::parse_peers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match parse_peers(Path::new("peers.json"), bytes) {
        Ok(peers) => assert!(peers.is_sorted_by(|one, next| one.address < next.address)),
        Err(error) => drop(error.to_string()),
    }
});

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    overlaywatch_fuzz::mutate_text(data, size, max_size, seed)
});
