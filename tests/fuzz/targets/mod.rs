//! One file per fuzzer: `run` takes any bytes and panics where what reads them breaks its promise.
#![allow(unreachable_pub, reason = "the library of the fuzzers, fuzz/lib.rs, holds this module too")]

pub mod config;
pub mod jsonl_request;
mod memory;
#[path = "../../common/model.rs"]
mod model;
pub mod safetensors_header;
pub mod shard_index;
pub mod stream;
pub mod template;
pub mod tokenizer_encode;
pub mod tokenizer_load;
#[path = "../../common/whole_text.rs"]
mod whole_text;
