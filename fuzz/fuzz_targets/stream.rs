#![no_main]

/// A few times the text.
const MAX_ALLOCATION: usize = 1 << 20;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    proxytune_fuzz::bounded(proxytune_fuzz::targets::stream::run, data, MAX_ALLOCATION)
});
