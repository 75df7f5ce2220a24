//! What every fuzzer has in common: bounds on time and on memory that hold on a busy machine and without a sanitizer.

#[path = "../tests/fuzz/targets/mod.rs"]
pub mod targets;

use rustix::time::{ClockId, clock_gettime};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Most processor time of one input, in seconds: an input that takes more hangs.
const MAX_SECONDS: f64 = 1.0;
/// Largest single allocation while an input runs, in bytes. Inputs have a few KiB, so what is as large as a target's limit
/// follows a number in the input instead of its length.
static MAX_ALLOCATION: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Runs one input. Processor time of all threads is what counts, so that a process that is stopped, or waits for a
/// processor, does not look like one that hangs; libFuzzer's own `-timeout` counts the wall clock, and catches what
/// never comes back.
pub fn bounded(run: fn(&[u8]), data: &[u8], max_allocation: usize) {
    let before = seconds();
    MAX_ALLOCATION.store(max_allocation, Relaxed);
    run(data);
    MAX_ALLOCATION.store(usize::MAX, Relaxed);
    let took = seconds() - before;
    assert!(took <= MAX_SECONDS, "the input took {took:.2} s of processor time, the limit is {MAX_SECONDS}");
}

fn seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The system's allocator with a limit.
struct Capped;

#[global_allocator]
static CAPPED: Capped = Capped;

// SAFETY: all calls go to the system's allocator with the arguments as they came.
unsafe impl GlobalAlloc for Capped {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn check(size: usize) {
    let limit = MAX_ALLOCATION.load(Relaxed);
    if size > limit {
        // The message must not be stopped by the limit.
        MAX_ALLOCATION.store(usize::MAX, Relaxed);
        eprintln!("an allocation of {size} bytes, the limit is {limit}");
        std::process::abort();
    }
}
