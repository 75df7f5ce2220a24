//! A checkpoint on the device, and the transformer over it.

pub mod graph;
pub mod weights;
