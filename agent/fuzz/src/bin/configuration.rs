//! The configuration file, and what is said of a mistake in it.
#![no_main]

use std::path::Path;

use overlaywatch::config::Config;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // The reader refuses what is not UTF-8 before anything else.
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Config::parse(Path::new("overlaywatch.toml"), text) {
        Ok(config) => drop(config.policy()),
        Err(error) => drop(error.to_string()),
    }
});

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    overlaywatch_fuzz::mutate_text(data, size, max_size, seed)
});
