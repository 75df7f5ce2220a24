#![no_main]

/// The shards and a few times the index.
const MAX_ALLOCATION: usize = 1 << 20;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    proxytune_fuzz::bounded(proxytune_fuzz::targets::shard_index::run, data, MAX_ALLOCATION)
});
