//! The kernel's type information.
#![no_main]

use overlaywatch::source::kernel::btf::Btf;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(btf) = Btf::parse(bytes) else { return };
    let _ = btf.offset("a", &["b", "c"]);
    let _ = btf.enumerators("a");
    let _ = btf.tracepoint_arguments("a");
});
