//! combine_sample and record, alone: against a reference in f64, against transformers, against chi-square, and the
//! truths of the contract that need no model. Tests generic over the backend run on each.

mod cases;
mod draws;
mod harness;
mod properties;
mod records;
mod reference;
mod slots;
mod truths;
mod warpers;

use proxytune::backend::cpu::Cpu;
use proxytune::backend::wgpu::{Options, Wgpu};

fn cpu() -> Cpu {
    Cpu::new(None).expect("a CPU")
}

/// Any adapter, a software one too; none at all fails.
fn wgpu() -> Wgpu {
    Wgpu::open(&Options { software: true, ..Options::default() }).expect("an adapter; lavapipe will do")
}

/// One test per backend of a function that is generic over it.
macro_rules! on_each_backend {
    ($($test:ident),* $(,)?) => {
        mod on_cpu {
            $(#[test] fn $test() { super::$test(&crate::cpu()); })*
        }
        mod on_wgpu {
            $(#[test] fn $test() { super::$test(&crate::wgpu()); })*
        }
    };
}
pub(crate) use on_each_backend;
