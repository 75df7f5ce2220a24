#![no_main]

/// One entry of 12 bytes for each of 2^20 ids.
const MAX_ALLOCATION: usize = 12 << 20;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    proxytune_fuzz::bounded(proxytune_fuzz::targets::tokenizer_load::run, data, MAX_ALLOCATION)
});
