//! Recordings, and the diagnosis that `replay` makes of whatever is in them.
#![no_main]

use overlaywatch::oneshot::table;
use overlaywatch::serve::health::Health;
use overlaywatch::serve::text::{self, Paint};
use overlaywatch_core::diagnose::replay;
use overlaywatch_core::policy::Policy;
use overlaywatch_core::record::Recording;
use overlaywatch_core::report::NodeReport;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(recording) = Recording::from_json(text) else { return };
    let written = recording.to_json().expect("what was read can be written");
    let again = Recording::from_json(&written).expect("what was written can be read");
    assert_eq!(again.to_json().expect("as before"), written);

    let Recording { before, now, .. } = recording;
    let diagnosis = replay(before.as_ref(), &now, &Policy::default());
    let _ = text::health(&Health::new(&now, &diagnosis), Paint::Plain);
    let _ = table(&NodeReport::new(&now, &diagnosis), Paint::Plain);
});

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    overlaywatch_fuzz::mutate_text(data, size, max_size, seed)
});
