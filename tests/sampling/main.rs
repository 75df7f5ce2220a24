//! combine_sample and record, alone: against a reference in f64, against transformers, against chi-square, and the
//! truths of the contract that need no model. Tests generic over the backend run on each.

#[allow(dead_code, reason = "the CUDA backend's own tests need more of it")]
#[path = "../cuda_host/build.rs"]
mod build;
mod cases;
#[allow(dead_code, reason = "the CUDA backend's own tests need more of it")]
#[path = "../cuda_host/device.rs"]
mod device;
mod draws;
mod harness;
mod properties;
mod records;
mod reference;
mod slots;
mod truths;
mod warpers;

use build::{Flavour, Source};
use device::{HostDevice, Order};
use proxytune::backend::cpu::Cpu;
use proxytune::backend::cuda::Cuda;
use proxytune::backend::cuda::kernels::{MODULES, Module};
use proxytune::backend::wgpu::{Options, Wgpu};

fn cpu() -> Cpu {
    Cpu::new(None).expect("a CPU")
}

/// Any adapter, a software one too; none at all fails.
fn wgpu() -> Wgpu {
    Wgpu::open(&Options { software: true, ..Options::default() }).expect("an adapter; lavapipe will do")
}

/// The CUDA backend, with the kernels of the two ops as C++.
fn cuda() -> Cuda<HostDevice> {
    let modules = || MODULES.iter().filter(|module| ["combine_sample", "record"].contains(&module.stem));
    let source = |module: &Module| Source { stem: module.stem, kernels: module.kernels, text: module.source() };
    let program = build::program(&modules().map(source).collect::<Vec<_>>(), Flavour::Gcc);
    let kernels = modules().flat_map(|module| module.kernels).collect();
    let orders = [Order::Shuffled, Order::Forward];
    Cuda::new(HostDevice::of_runner("sampling".into(), &program, kernels, orders)).expect("the runner is here")
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
        mod on_cuda {
            $(#[test] fn $test() { super::$test(&crate::cuda()); })*
        }
    };
}
pub(crate) use on_each_backend;
