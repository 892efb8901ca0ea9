//! /proc/kallsyms.
#![no_main]

use overlaywatch::source::kernel::symbols;

libfuzzer_sys::fuzz_target!(|lines: &[u8]| {
    let addresses = [0x10, 0x1000, 0xffff_ffff_8100_0250, u64::MAX];
    let _ = symbols::find(lines, &addresses);
});
