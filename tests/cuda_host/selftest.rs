//! The self-test's matrix on the kernels as C++.

use crate::build::Flavour;
use crate::device::{HostDevice, Order};
use proxytune::backend::cuda::Cuda;
use proxytune::selftest::{run_op, run_op_as};

/// An op against f64 and the twin.
fn passes(op: &str, flavour: Flavour, orders: [Order; 2]) {
    // What is not optimised, or watched, runs a part of the matrix.
    let every = if flavour == Flavour::Gcc { 1 } else { 4 };
    let cuda = Cuda::new(HostDevice::new(flavour, orders)).expect("the runner is here");
    let report = run_op(&cuda, op, every).expect("the kernels run");
    println!("{report:?}");
    assert!(report.passed && report.cases > 0, "{report:#?}");
}

macro_rules! ops {
    ($($flavour:ident: [$blocks:ident, $threads:ident] as $name:ident),*) => {$(
        mod $name {
            use super::*;
            ops!(@each $flavour $blocks $threads: copy_pages embed norm_matmul rope_append attention matmul_add norm_add
                norm_gate_up combine_sample record);
        }
    )*};
    (@each $flavour:ident $blocks:ident $threads:ident: $($op:ident)*) => {$(
        #[test]
        fn $op() {
            passes(stringify!($op), Flavour::$flavour, [Order::$blocks, Order::$threads]);
        }
    )*};
}

ops!(
    Gcc: [Forward, Forward] as gcc,
    Clang: [Reverse, Reverse] as clang,
    Sanitized: [Forward, Shuffled] as sanitized,
    Races: [Shuffled, Forward] as races
);

#[test]
fn spans_that_meet_in_memory_fold_as_those_in_registers() {
    let device = |blocks| HostDevice::new(Flavour::Gcc, [blocks, Order::Forward]);
    let split = Cuda::new(device(Order::Shuffled)).expect("the runner is here");
    let whole = Cuda::with_room(device(Order::Forward), 0).expect("the runner is here");
    let report = run_op_as(&split, &whole, "attention").expect("the kernels run");
    assert!(report.passed, "{report:#?}");
}
