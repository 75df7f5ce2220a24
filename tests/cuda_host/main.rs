//! The CUDA backend without a card: kernels/*.cu compiled as C++ by g++ and clang, run by fibres in a process that
//! plays the device (cuda_host.h and what stands beside it), against the CPU twin and f64.

mod build;
mod device;
mod headers;
mod planted;
mod selftest;
