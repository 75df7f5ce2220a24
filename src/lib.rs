//! proxytune: a large base model steered by a small tuned pair, decoded together.

pub mod backend;
pub mod checkpoint;
pub mod engine;
pub mod error;
pub mod kv;
pub mod model;
pub mod selftest;
pub mod text;

pub use error::{Error, Result};
