//! What an agent answers over HTTP, as `status` reads and draws it.
#![no_main]

use overlaywatch::oneshot::table;
use overlaywatch::serve::health::Health;
use overlaywatch::serve::text::{self, Paint};
use overlaywatch_core::report::NodeReport;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(health) = serde_json::from_slice::<Health>(bytes) {
        let _ = text::health(&health, Paint::Plain);
    }
    if let Ok(report) = serde_json::from_slice::<NodeReport>(bytes) {
        let _ = table(&report, Paint::Plain);
    }
});

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    overlaywatch_fuzz::mutate_text(data, size, max_size, seed)
});
