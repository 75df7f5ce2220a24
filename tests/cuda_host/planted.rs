//! Mistakes that were planted, each in a kernel of planted/*.cu: every one must be found, where and as it should be.

use crate::build::{Flavour, Source, program};
use crate::device::{HostDevice, Order};
use bytemuck::{Pod, Zeroable};
use proxytune::backend::cuda::device::{Branch, Device, Launch, Memory, Step};
use proxytune::backend::cuda::kernels::Kernel;
use proxytune::{Error, Result};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PlantedArgs {
    out: u64,
    input: u64,
    counter: u64,
}

const THREADS: usize = 64;

const fn kernel(stem: &'static str, name: &'static str) -> Kernel {
    Kernel { stem, name, threads: THREADS as u32, args: "PlantedArgs", args_bytes: size_of::<PlantedArgs>() }
}

/// Kernels of a file.
macro_rules! planted {
    ($table:ident, $stem:ident: $($name:ident),*) => {
        static $table: &[Kernel] = &[$(kernel(stringify!($stem), stringify!($name))),*];
    };
}

planted!(BARRIERS, barriers: no_mistake, barrier_of_one_warp, barriers_on_two_lines, barrier_after_one_left, half_a_warp,
    lanes_elsewhere, warp_against_block, never_waits, too_deep);
planted!(MEMORY, memory: shared_unwritten, shared_past_end, global_past_end, copy_without_wait, copy_with_short_wait,
    copy_past_end, misaligned, writes_before_wait, reads_before_wait);
planted!(RACES, races: no_sync_block, no_second_sync_block, no_sync_warp, write_after_reads, two_store_one_word,
    halves_of_a_word, blocks_store_one_word, blocks_read_each_other, no_fence_before, no_fence_after,
    copy_without_barrier, atomic_and_write);

fn sources() -> Vec<Source> {
    let source = |stem: &'static str, kernels, text: &str| Source { stem, kernels, text: text.into() };
    vec![
        source("barriers", BARRIERS, include_str!("planted/barriers.cu")),
        source("memory", MEMORY, include_str!("planted/memory.cu")),
        source("races", RACES, include_str!("planted/races.cu")),
    ]
}

fn named(name: &str) -> &'static Kernel {
    let found = [BARRIERS, MEMORY, RACES].into_iter().flatten().find(|kernel| kernel.name == name);
    found.expect("a planted kernel")
}

fn device(flavour: Flavour, orders: [Order; 2]) -> HostDevice {
    let kernels = [BARRIERS, MEMORY, RACES].into_iter().flatten().collect();
    HostDevice::of_runner("planted".into(), &program(&sources(), flavour), kernels, orders)
}

/// Runs a kernel twice over two blocks; what it wrote. `out` has a word per thread, and one more block's; the input is
/// 1, 2, 3 ..
fn run(device: &HostDevice, name: &str) -> Result<Vec<u32>> {
    let words: Vec<u32> = (1..=THREADS as u32).collect();
    let (out, input) = (device.alloc("out", 12 * THREADS)?, device.alloc("in", 4 * THREADS)?);
    let counter = device.alloc("counter", 4 + 8 * THREADS)?;
    device.upload(&input, 0, bytemuck::cast_slice(&words))?;
    let args = PlantedArgs { out: out.address(), input: input.address(), counter: counter.address() };
    let launch =
        Launch { kernel: named(name), grid: [2, 1, 1], args: bytemuck::bytes_of(&args).into(), branch: Branch::All };
    let step = Step { launches: vec![launch.clone(), launch], is_rare: false };
    let receipt = device.submit(&step, &[(&out, 0..out.bytes())])?;
    Ok(bytemuck::pod_collect_to_vec(&device.collect(receipt)?))
}

/// What the runner says of a kernel; it must end by it.
fn fault(flavour: Flavour, name: &str) -> String {
    match run(&device(flavour, [Order::Forward; 2]), name) {
        Err(Error::Device { backend: "cuda", message }) => message,
        other => panic!("{name} as {flavour:?}: {other:?}"),
    }
}

#[test]
fn what_is_no_mistake_passes_everywhere() {
    let word = |thread: usize| (thread ^ 33) as u32 + 1;
    let expected: Vec<u32> = (0..3).flat_map(|part| (0..THREADS).map(move |t| word(t) * (1 + part / 2))).collect();
    for flavour in [Flavour::Gcc, Flavour::Clang, Flavour::Sanitized, Flavour::Races] {
        for order in [Order::Forward, Order::Reverse, Order::Shuffled] {
            let got = run(&device(flavour, [order; 2]), "no_mistake").expect("no mistake");
            assert_eq!(got, expected, "{flavour:?}, {order:?}");
        }
    }
}

#[test]
fn mistakes_are_found() {
    use Flavour::{Gcc, Races, Sanitized};
    let found: &[(&str, Flavour, &[&str])] = &[
        (
            "barrier_of_one_warp",
            Gcc,
            &["block (0, 0, 0), thread 32: ends, while thread 0 waits at sync_block (barriers.cu:42)"],
        ),
        (
            "barriers_on_two_lines",
            Gcc,
            &["thread 32: comes to sync_block (barriers.cu:52), while thread 0 waits at sync_block (barriers.cu:50)"],
        ),
        (
            "barrier_after_one_left",
            Gcc,
            &["thread 1: comes to sync_block (barriers.cu:61), to which thread 0, which has ended"],
        ),
        ("half_a_warp", Gcc, &["thread 16: ends, while thread 0 waits at lane_xor (barriers.cu:67)"]),
        (
            "lanes_elsewhere",
            Gcc,
            &["thread 16: comes to from_lane (barriers.cu:76), while thread 0 waits at lane_xor (barriers.cu:74)"],
        ),
        (
            "warp_against_block",
            Gcc,
            &[
                "thread 0: waits at sync_warp (barriers.cu:83) for its warp, while thread 16 waits at sync_block (barriers.cu:85)",
            ],
        ),
        ("never_waits", Gcc, &["ends without wait_for_earlier()"]),
        ("too_deep", Gcc, &["kernel too_deep, block (0, 0, 0), thread 0: the stack overflows"]),
        (
            "shared_past_end",
            Sanitized,
            &["heap-buffer-overflow", "memory.cu:27", "kernel shared_past_end, block (0, 0, 0), thread 63"],
        ),
        ("global_past_end", Sanitized, &["heap-buffer-overflow", "memory.cu:32"]),
        ("copy_past_end", Sanitized, &["heap-buffer-overflow", "memory.cu:64"]),
        ("misaligned", Sanitized, &["misaligned address", "memory.cu:71"]),
        ("shared_unwritten", Races, &["nobody wrote this shared memory", "memory.cu:20"]),
        ("shared_past_end", Races, &["no allocation is there", "memory.cu:27"]),
        ("global_past_end", Races, &["no allocation is there", "memory.cu:32"]),
        ("copy_without_wait", Races, &["cp.async writes there", "memory.cu:42"]),
        ("copy_with_short_wait", Races, &["cp.async writes there", "memory.cu:57"]),
        ("copy_past_end", Races, &["no allocation is there"]),
        ("writes_before_wait", Races, &["before wait_for_earlier()", "memory.cu:75"]),
        ("reads_before_wait", Races, &["an earlier kernel wrote it", "memory.cu:82"]),
        ("no_sync_block", Races, &["a race", "reads 4 bytes", "races.cu:25", "wrote it (races.cu:23"]),
        ("no_second_sync_block", Races, &["a race", "races.cu:34", "races.cu:36"]),
        ("no_sync_warp", Races, &["a race", "reads 4 bytes", "races.cu:47", "wrote it (races.cu:45"]),
        ("write_after_reads", Races, &["a race", "read it", "races.cu:58", "races.cu:60"]),
        ("two_store_one_word", Races, &["a race", "writes 4 bytes", "thread 0 wrote it (races.cu:67"]),
        ("halves_of_a_word", Races, &["thread 1: writes 2 bytes", "races.cu:75", "thread 0 wrote it"]),
        ("blocks_store_one_word", Races, &["block (1, 0, 0), thread 0", "thread 0 of another block wrote it"]),
        ("blocks_read_each_other", Races, &["a race", "of another block"]),
        ("no_fence_before", Races, &["a race", "of another block wrote it (races.cu:107"]),
        ("no_fence_after", Races, &["a race", "of another block wrote it (races.cu:107"]),
        ("copy_without_barrier", Races, &["a race", "races.cu:135", "wrote it"]),
        ("atomic_and_write", Races, &["thread 1: changes 4 bytes", "thread 0 wrote it (races.cu:142"]),
    ];
    let mut wrong = Vec::new();
    for &(name, flavour, parts) in found {
        let message = fault(flavour, name);
        if parts.iter().any(|part| !message.contains(part)) {
            wrong.push(format!("{name} as {flavour:?}, {parts:?}:\n{message}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a device leaves undefined is poison, not what stood there last.
#[test]
fn unwritten_memory_is_poison() {
    const POISON: u32 = 0x7fc1_7fc1;
    let device = device(Flavour::Gcc, [Order::Forward; 2]);
    assert_eq!(run(&device, "shared_unwritten").expect("it runs")[..THREADS], [POISON; THREADS]);
    assert_eq!(run(&device, "copy_without_wait").expect("it runs")[..THREADS / 4], [POISON; THREADS / 4]);
    assert_eq!(run(&device, "copy_with_short_wait").expect("it runs")[..2], [1, POISON]);
}
