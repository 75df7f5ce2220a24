#![no_main]

/// 128 samples of a prompt of a few KiB.
const MAX_ALLOCATION: usize = 2 << 20;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    proxytune_fuzz::bounded(proxytune_fuzz::targets::jsonl_request::run, data, MAX_ALLOCATION)
});
