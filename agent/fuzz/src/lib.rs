//! What several fuzz targets share.

/// Where types, counters and clocks end, or are taken for something special.
const LIMITS: [&str; 12] = [
    "0",
    "1",
    "-1",
    "255",
    "256",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
];

/// Changes text: one of its numbers to a limit, or, every other time, whatever
/// libFuzzer does. Left to itself libFuzzer changes digits one by one, and
/// hardly ever comes to a number that overflows a sum.
///
/// For [`libfuzzer_sys::fuzz_mutator`], which says what is passed and returned.
pub fn mutate_text(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let numbers = numbers(&data[..size]);
    let choice = seed as usize / 2;
    if seed % 2 == 0 || numbers.is_empty() {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    let (start, end) = numbers[choice % numbers.len()];
    let limit = LIMITS[choice / numbers.len() % LIMITS.len()].as_bytes();
    let changed = [&data[..start], limit, &data[end..size]].concat();
    let kept = changed.len().min(max_size);
    data[..kept].copy_from_slice(&changed[..kept]);
    kept
}

/// Where the runs of digits in `text` start and end.
fn numbers(text: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let length = text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if length > 0 {
            found.push((at, at + length));
        }
        at += length + 1;
    }
    found
}
