#![no_main]

/// The cache of the regex crate's automata, which begins anew at 2 MB.
const MAX_ALLOCATION: usize = 4 << 20;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    proxytune_fuzz::bounded(proxytune_fuzz::targets::tokenizer_encode::run, data, MAX_ALLOCATION)
});
