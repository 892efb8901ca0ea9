//! Network configurations of CNI plugins, flannel's note, and what K3s writes
//! for containerd.
#![no_main]

use overlaywatch::source::cni::translate;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // The reader refuses what is not UTF-8 before any of these.
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for path in ["a.conflist", "a.conf"] {
        if let Ok(told) = translate::configuration(path, text) {
            assert!(!told.types.is_empty() && told.types.len() <= 64);
            assert!(told.networks.len() <= 64 && told.networks.is_sorted());
        }
    }
    let _ = translate::flannel_note(text);
    let _ = translate::k3s_network(text);
});

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    overlaywatch_fuzz::mutate_text(data, size, max_size, seed)
});
