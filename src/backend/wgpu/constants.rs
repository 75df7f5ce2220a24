//! Constants that both sides need, written once in Rust and prepended to every shader as `const` lines.

use super::ops::COPY_WORDS;
use super::{BLOCK_ROWS, IMAGE_WIDTH};
use crate::backend::math::*;
use crate::backend::params::*;
use crate::backend::{Activation, Dtype};
use std::fmt::Write;

/// The lines.
pub(super) fn lines() -> String {
    let mut lines = String::new();
    for (name, value) in [
        ("MAX_MEMBERS", MAX_MEMBERS as u32),
        ("N_LANES", N_LANES as u32),
        ("KEY_BLOCK", KEY_BLOCK as u32),
        ("MAX_HEAD_DIM", MAX_HEAD_DIM as u32),
        ("BLOCK_ROWS", BLOCK_ROWS as u32),
        ("IMAGE_WIDTH", IMAGE_WIDTH),
        ("COPY_WORDS", COPY_WORDS),
        ("RING", RING as u32),
        ("MAX_STOP_IDS", MAX_STOP_IDS as u32),
        ("MAX_BIASES", MAX_BIASES as u32),
        ("MAX_RECORD_TOP", MAX_RECORD_TOP as u32),
        ("FROM_SLOT", FROM_SLOT),
        ("RUNNING", Finish::Running as u32),
        ("STOP", Finish::Stop as u32),
        ("LENGTH", Finish::Length as u32),
        ("NUMERIC", Finish::Numeric as u32),
        ("EMPTY", Finish::Empty as u32),
        ("PHILOX_MULTIPLIER_0", PHILOX_MULTIPLIERS[0]),
        ("PHILOX_MULTIPLIER_1", PHILOX_MULTIPLIERS[1]),
        ("PHILOX_KEY_STEP_0", PHILOX_KEY_STEPS[0]),
        ("PHILOX_KEY_STEP_1", PHILOX_KEY_STEPS[1]),
        ("F32", Dtype::F32 as u32),
        ("F16", Dtype::F16 as u32),
        ("BF16", Dtype::Bf16 as u32),
        ("SILU", Activation::Silu as u32),
        ("GELU_TANH", Activation::GeluTanh as u32),
    ] {
        line(&mut lines, name, format_args!("{value}u"));
    }
    for (name, value) in
        [("LN2_HI", LN2_HI), ("LN2_LO", LN2_LO), ("EXP_MIN", EXP_MIN), ("LOG2_E", std::f32::consts::LOG2_E)]
    {
        line(&mut lines, name, format_args!("{value:?}f"));
    }
    line(&mut lines, "EXP_POLY", format_args!("{}", array(&EXP_POLY)));
    line(&mut lines, "LN_POLY", format_args!("{}", array(&LN_POLY)));
    lines
}

fn line(lines: &mut String, name: &str, value: std::fmt::Arguments<'_>) {
    writeln!(lines, "const {name} = {value};").expect("a String takes any text");
}

fn array(values: &[f32]) -> String {
    let items: Vec<String> = values.iter().map(|value| format!("{value:?}f")).collect();
    format!("array<f32, {}>({})", values.len(), items.join(", "))
}
