#![no_main]

/// The file, thrice over.
const MAX_ALLOCATION: usize = 1 << 20;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    proxytune_fuzz::bounded(proxytune_fuzz::targets::safetensors_header::run, data, MAX_ALLOCATION)
});
