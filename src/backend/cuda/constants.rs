//! Constants that both sides need, written once in Rust, and the layout of every struct that both sides have.

use super::attention;
use super::draw::{DIGIT_BITS, DRAW_SCRATCH_BYTES, N_DIGITS, PART_IDS, RECORD_SCRATCH_BYTES};
use super::matrix::TILE;
use super::rows::COPY_WORDS;
use crate::backend::layouts::{Layout, layouts};
use crate::backend::math::*;
use crate::backend::params::*;
use crate::backend::{Activation, Dtype};
use std::fmt::Write;

/// constants.cuh.
pub(super) fn constants_header() -> String {
    let mut lines = String::from("#pragma once\n");
    for (name, value) in [
        ("MAX_MEMBERS", MAX_MEMBERS as u32),
        ("N_LANES", N_LANES as u32),
        ("KEY_BLOCK", KEY_BLOCK as u32),
        ("MAX_HEAD_DIM", MAX_HEAD_DIM as u32),
        ("MAX_SLOTS", MAX_SLOTS as u32),
        ("MAX_VOCAB", MAX_VOCAB as u32),
        ("ATTENTION_SPANS", attention::MAX_SPANS),
        ("ATTENTION_COLUMNS", attention::COLUMNS),
        ("ATTENTION_CHUNK_BYTES", attention::CHUNK_BYTES as u32),
        ("ATTENTION_SUMS_BYTES", attention::SUMS_BYTES as u32),
        ("RING", RING as u32),
        ("COPY_WORDS", COPY_WORDS),
        ("MAX_STOP_IDS", MAX_STOP_IDS as u32),
        ("MAX_BIASES", MAX_BIASES as u32),
        ("MAX_RECORD_TOP", MAX_RECORD_TOP as u32),
        ("FROM_SLOT", FROM_SLOT),
        ("NO_SLOT", NO_SLOT),
        ("RUNNING", Finish::Running as u32),
        ("STOP", Finish::Stop as u32),
        ("LENGTH", Finish::Length as u32),
        ("NUMERIC", Finish::Numeric as u32),
        ("EMPTY", Finish::Empty as u32),
        ("PHILOX_MULTIPLIER_0", PHILOX_MULTIPLIERS[0]),
        ("PHILOX_MULTIPLIER_1", PHILOX_MULTIPLIERS[1]),
        ("PHILOX_KEY_STEP_0", PHILOX_KEY_STEPS[0]),
        ("PHILOX_KEY_STEP_1", PHILOX_KEY_STEPS[1]),
        ("SQRT_HALF_BITS", std::f32::consts::FRAC_1_SQRT_2.to_bits()),
        ("F32", Dtype::F32 as u32),
        ("F16", Dtype::F16 as u32),
        ("BF16", Dtype::Bf16 as u32),
        ("SILU", Activation::Silu as u32),
        ("GELU_TANH", Activation::GeluTanh as u32),
        ("TILE", TILE as u32),
        ("PART_IDS", PART_IDS),
        ("DIGIT_BITS", DIGIT_BITS),
        ("N_DIGITS", N_DIGITS),
        ("DRAW_SCRATCH_BYTES", DRAW_SCRATCH_BYTES as u32),
        ("RECORD_SCRATCH_BYTES", RECORD_SCRATCH_BYTES as u32),
    ] {
        line(&mut lines, format_args!("constexpr u32 {name} = {value}u;"));
    }
    for (name, value) in [
        ("LN2_HI", LN2_HI),
        ("LN2_LO", LN2_LO),
        ("EXP_MIN", EXP_MIN),
        ("INTEGERS", INTEGERS),
        ("LOG2_E", std::f32::consts::LOG2_E),
        ("RANDOM_UNIT", RANDOM_UNIT),
        ("BELOW_ONE", BELOW_ONE),
        ("GELU_LINEAR", GELU_LINEAR),
        ("GELU_CUBIC", GELU_CUBIC),
    ] {
        line(&mut lines, format_args!("constexpr float {name} = {value:?}f;"));
    }
    // An array of the namespace would be read from memory; as the initialiser of a local one it becomes immediates.
    for (name, values) in [("EXP_POLY", &EXP_POLY[..]), ("LN_POLY", &LN_POLY[..])] {
        let items: Vec<String> = values.iter().map(|value| format!("{value:?}f")).collect();
        line(&mut lines, format_args!("#define {name} {{{}}}", items.join(", ")));
    }
    lines
}

/// layouts.cuh: size and offsets of each record and each op's scalars, as assertions.
pub(super) fn layouts_header() -> String {
    let mut lines = String::from("#pragma once\n");
    for Layout { name, bytes, fields } in layouts() {
        line(&mut lines, format_args!("static_assert(sizeof({name}) == {bytes}, \"{name}\");"));
        for (field, offset) in fields {
            let place = format_args!("OFFSET_OF({name}, {field}) == {offset}");
            line(&mut lines, format_args!("static_assert({place}, \"{name}.{field}\");"));
        }
    }
    lines
}

fn line(lines: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(lines, "{text}").expect("a String takes any text");
}
