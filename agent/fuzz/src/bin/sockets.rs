//! TCP sockets as sock_diag tells of them, and the first line of the answer
//! that a service on this node gives.
#![no_main]

use overlaywatch::source::sockets::translate;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(socket)) = translate::socket(bytes) {
        let _ = socket.session();
    }
    if let Some(status) = translate::status(bytes) {
        assert!(status < 1_000, "{status} has more than three digits");
    }
});
