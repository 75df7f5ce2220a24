//! The kernels as they stand in kernels/, and what Rust has to know of each.

use super::{attention, constants, draw, matmul, rows};
use std::fmt::Write;

/// A function of a module.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The op, and the module: kernels/STEM.cu.
    pub stem: &'static str,
    /// Its `extern "C"` name.
    pub name: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// The struct that is its one argument.
    pub args: &'static str,
    /// The size of that struct.
    pub args_bytes: usize,
}

/// One op's module: kernels/STEM.cu.
#[derive(Debug)]
pub struct Module {
    /// The op.
    pub stem: &'static str,
    /// Its text, but for the headers.
    text: &'static str,
    /// Its functions.
    pub kernels: &'static [Kernel],
}

macro_rules! module {
    ($stem:literal, $kernels:expr) => {
        Module { stem: $stem, text: include_str!(concat!("../../../kernels/", $stem, ".cu")), kernels: $kernels }
    };
}

/// Every module, in the order of a step.
pub static MODULES: [Module; 10] = [
    module!("copy_pages", rows::COPY_PAGES),
    module!("embed", rows::EMBED),
    module!("norm_matmul", matmul::NORM_MATMUL),
    module!("rope_append", attention::ROPE_APPEND),
    module!("attention", attention::ATTENTION),
    module!("matmul_add", matmul::MATMUL_ADD),
    module!("norm_add", rows::NORM_ADD),
    module!("norm_gate_up", matmul::NORM_GATE_UP),
    module!("combine_sample", draw::COMBINE_SAMPLE),
    module!("record", draw::RECORD),
];

impl Module {
    /// What a compiler is given: the text, and that blocks and arguments have the sizes that they have here.
    pub fn source(&self) -> String {
        let mut source = self.text.to_string();
        for Kernel { args, args_bytes, threads, .. } in self.kernels {
            writeln!(source, "static_assert(sizeof({args}) == {args_bytes}, \"{args}\");").expect("a String");
            writeln!(source, "static_assert(THREADS == {threads}, \"threads\");").expect("a String");
        }
        source
    }
}

/// What kernels include, by name; two of them are made of the constants and structs of this crate.
pub fn headers() -> Vec<(&'static str, String)> {
    vec![
        ("common.cuh", include_str!("../../../kernels/common.cuh").into()),
        ("records.cuh", include_str!("../../../kernels/records.cuh").into()),
        ("ids.cuh", include_str!("../../../kernels/ids.cuh").into()),
        ("select.cuh", include_str!("../../../kernels/select.cuh").into()),
        ("keys.cuh", include_str!("../../../kernels/keys.cuh").into()),
        ("matmul.cuh", include_str!("../../../kernels/matmul.cuh").into()),
        ("constants.cuh", constants::constants_header()),
        ("layouts.cuh", constants::layouts_header()),
    ]
}
