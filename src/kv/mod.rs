//! Keys and values of running sequences: one pool of pages for the three models.

pub mod pool;
