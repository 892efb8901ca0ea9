//! Files of the host that tell of the machine.
#![no_main]

use overlaywatch::source::machine::translate;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // The reader takes what is not UTF-8 in the same way.
    let text = String::from_utf8_lossy(bytes);
    let name = translate::os_release(&text, "PRETTY_NAME");
    if let Some(name) = name.into_iter().chain(translate::name(&text)).next() {
        assert!(!name.is_empty() && name.len() <= 128);
    }
    let (builtin, dep) = text.split_once("\n\n").unwrap_or(("", &text));
    assert_eq!(translate::modules(builtin, dep).len(), translate::OF_INTEREST.len());
});
