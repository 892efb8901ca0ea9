//! The files of /proc that have a format of their own, and what the kernel answers
//! where there is none.
#![no_main]

use overlaywatch::source::procfs::translate;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = translate::neighbour_table(bytes);
    // The reader refuses what is not UTF-8 before any of these.
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = translate::counters(text);
    let _ = translate::softnet(text);
    let _ = translate::modules(text);
    let _ = translate::neighbours(text);
});

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    overlaywatch_fuzz::mutate_text(data, size, max_size, seed)
});
