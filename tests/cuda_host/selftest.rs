//! The self-test's matrix on the kernels as C++.

use crate::build::Flavour;
use crate::device::{HostDevice, Order};
use proxytune::backend::cuda::Cuda;
use proxytune::backend::cuda::kernels::MODULES;
use proxytune::selftest::{one_of, run_op, run_op_as};

/// The part of an op's cases that is run where kernels are not optimised, or watched.
fn is_in_part(op: &str, case: usize) -> bool {
    match op {
        // Of each type a narrow head, one that is not aligned, a wide and the widest one, with each group; rows at
        // the edge of spans, and in company.
        "attention" => [0, 7, 15, 5, 20, 31, 28, 29, 44, 37, 39, 53, 56, 60].contains(&case),
        // Each parameter in one block; filters and base masks over many.
        "combine_sample" => [3, 7, 8].contains(&case),
        // One block, and many.
        "record" => [3, 7].contains(&case),
        // Shapes of all kinds, and by rows in company each form of a block that 16-bit weights have.
        "norm_matmul" => one_of(5)(case) || [74, 79].contains(&case),
        "matmul_add" | "norm_gate_up" => one_of(5)(case) || [73, 76].contains(&case),
        _ => one_of(4)(case),
    }
}

/// An op against f64 and the twin, in cases that launch every kernel of its module.
fn passes(op: &str, flavour: Flavour, orders: [Order; 2]) {
    let is_chosen = |case| flavour == Flavour::Gcc || is_in_part(op, case);
    let device = HostDevice::new(flavour, orders);
    let launched = device.launched();
    let cuda = Cuda::new(device).expect("the runner is here");
    let report = run_op(&cuda, op, &is_chosen).expect("the kernels run");
    println!("{report:?}");
    assert!(report.passed && report.cases > 0, "{report:#?}");
    let (module, launched) = (MODULES.iter().find(|module| module.stem == op), launched());
    let names = module.expect("an op has its module").kernels.iter().map(|kernel| kernel.name);
    let missed: Vec<_> = names.filter(|name| !launched.contains(name)).collect();
    assert!(missed.is_empty(), "no case launches {missed:?}");
}

macro_rules! ops {
    ($($flavour:ident: [$blocks:ident, $threads:ident] as $name:ident),*) => {$(
        mod $name {
            use super::*;
            ops!(@each $flavour $blocks $threads: copy_pages embed norm_matmul rope_append attention matmul_add norm_add
                norm_gate_up combine_sample record);
        }
    )*};
    (@each $flavour:ident $blocks:ident $threads:ident: $($op:ident)*) => {
        #[test]
        fn every_module_has_its_test() {
            assert_eq!(MODULES.each_ref().map(|module| module.stem), [$(stringify!($op)),*]);
        }
        $(
            #[test]
            fn $op() {
                passes(stringify!($op), Flavour::$flavour, [Order::$blocks, Order::$threads]);
            }
        )*
    };
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
