#![no_main]

/// A template's steps pay for 64 bytes each: 250,000 of them for a string of 16 MB, and twice that while it grows.
const MAX_ALLOCATION: usize = 32 << 20;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    proxytune_fuzz::bounded(proxytune_fuzz::targets::template::run, data, MAX_ALLOCATION)
});
