//! What a device's own layer answers: XDP programs, offloads, its driver.
#![no_main]

use overlaywatch::source::kernel::nic::translate;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(programs) = translate::xdp(bytes) {
        assert!(programs.len() <= 3);
    }
    if let Ok(on) = translate::offloads(bytes) {
        assert!(on.len() <= 12);
    }
    let _ = translate::family(bytes);
    if let Some(answer) = bytes.first_chunk() {
        let driver = translate::driver(answer);
        assert!(driver.name.is_none_or(|name| name.chars().count() <= 32));
    }
});
