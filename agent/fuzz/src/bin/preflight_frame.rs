//! What the ends of a preflight tell each other: whatever is read says the same once it is written again.
#![no_main]

use overlaywatch_core::preflight::frame::{FRAME_BYTES, Frame};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some(bytes) = bytes.first_chunk::<FRAME_BYTES>() else { return };
    let Ok(frame) = Frame::decode(bytes) else { return };
    assert_eq!(frame.encode(), *bytes);
});
