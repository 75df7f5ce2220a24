#![no_main]

/// The names of the tensors that 1,024 layers ask for, and as much again while the list grows.
const MAX_ALLOCATION: usize = 4 << 20;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    proxytune_fuzz::bounded(proxytune_fuzz::targets::config::run, data, MAX_ALLOCATION)
});
