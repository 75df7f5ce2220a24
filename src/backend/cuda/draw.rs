//! Plans of combine_sample and record. Blocks of a sample leave what they found in memory of the backend; each launch
//! waits for the one before.

use super::kernels::Kernel;
use super::*;
use bytemuck::{Pod, Zeroable};

/// Threads of every kernel here.
const THREADS: u32 = 256;
/// Ids of a block: four for each thread.
pub(super) const PART_IDS: u32 = 4 * THREADS;
const N_PARTS: usize = MAX_VOCAB.div_ceil(PART_IDS as usize);
/// Digits of a place among the scores, see kernels/select.cuh, and the bins of one.
pub(super) const N_DIGITS: u32 = 5;
pub(super) const DIGIT_BITS: u32 = 10;
const N_BINS: usize = 1 << DIGIT_BITS;

/// kernels/combine_sample.cu's DrawScratch: a prefix with its bins and a counter, what each part found, the best score.
pub(super) const DRAW_SCRATCH_BYTES: usize = 8 * (4 + N_BINS) + 16 * N_PARTS + 8;
/// kernels/record.cu's RecordScratch: the peaks of four rows, a counter, and for each part peaks, top entries and sums.
pub(super) const RECORD_SCRATCH_BYTES: usize = 32 + 16 + (32 + 8 * MAX_RECORD_TOP + 64) * N_PARTS;

/// combine_sample's argument.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CombineSampleArgs {
    slots: u64,
    scores: u64,
    counts: u64,
    base: u64,
    expert: u64,
    anti: u64,
    samples: u64,
    constraints: u64,
    scratch: u64,
    params: CombineSampleParams,
    /// Of a launch that looks for one.
    digit: u32,
    reserved: u32,
}

/// record's argument.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RecordArgs {
    records: u64,
    slots: u64,
    scores: u64,
    base: u64,
    expert: u64,
    anti: u64,
    samples: u64,
    constraints: u64,
    scratch: u64,
    params: RecordParams,
}

const fn part_of_combine_sample(name: &'static str) -> Kernel {
    let args_bytes = size_of::<CombineSampleArgs>();
    Kernel { stem: "combine_sample", name, threads: THREADS, args: "CombineSampleArgs", args_bytes }
}

const fn part_of_record(name: &'static str) -> Kernel {
    Kernel { stem: "record", name, threads: THREADS, args: "RecordArgs", args_bytes: size_of::<RecordArgs>() }
}

/// In the order of a step.
static OF_COMBINE_SAMPLE: [Kernel; 6] = [
    part_of_combine_sample("base_peak"),
    part_of_combine_sample("base_nucleus"),
    part_of_combine_sample("combine_sample"),
    part_of_combine_sample("top_k"),
    part_of_combine_sample("nucleus"),
    part_of_combine_sample("draw"),
];
pub(super) static COMBINE_SAMPLE: &[Kernel] = &OF_COMBINE_SAMPLE;
pub(super) static RECORD: &[Kernel] = &[part_of_record("record_peaks"), part_of_record("record_sums")];

/// What blocks of one sample leave for each other, for as many samples as a step can have. Zero where it counts, before a
/// launch and after it.
pub(super) struct Scratch<D: Device> {
    combine_sample: D::Memory,
    record: D::Memory,
}

impl<D: Device> Scratch<D> {
    pub(super) fn new(device: &D) -> Result<Self> {
        Ok(Self {
            combine_sample: device.alloc("scratch of combine_sample", MAX_SLOTS * DRAW_SCRATCH_BYTES)?,
            record: device.alloc("scratch of record", MAX_SLOTS * RECORD_SCRATCH_BYTES)?,
        })
    }
}

/// Parts of the ids, and samples: a bound, where the buffer has room for one.
fn grid(pass: &mut Pass, mask_words: u32, n_samples: u32, samples: &impl Memory) -> [u32; 3] {
    let room = (samples.bytes() / size_of::<Sample>()) as u32;
    [(32 * mask_words).div_ceil(PART_IDS), pass.bound(n_samples).min(room), 1]
}

pub(super) fn combine_sample<D: Device>(cuda: &Cuda<D>, pass: &mut Pass, op: CombineSample<'_, Cuda<D>>) {
    let CombineSample { slots, scores, counts, base, expert, anti, samples, constraints, n_samples, choice, params } =
        op;
    let args = CombineSampleArgs {
        slots: slots.address(),
        scores: scores.address(),
        counts: counts.address(),
        base: base.address(),
        expert: expert.address(),
        anti: anti.address(),
        samples: samples.address(),
        constraints: constraints.address(),
        scratch: cuda.draw.combine_sample.address(),
        params,
        digit: 0,
        reserved: 0,
    };
    let grid = grid(pass, params.mask_words, n_samples, samples);
    let mut launches = |kernel: &'static Kernel, n: u32| {
        (0..n).for_each(|digit| pass.launch(kernel, grid, &CombineSampleArgs { digit, ..args }, Branch::All));
    };
    let [base_peak, base_nucleus, combine_sample, top_k, nucleus, draw] = &OF_COMBINE_SAMPLE;
    if choice >= Choice::BaseMasked {
        launches(base_peak, 1);
        launches(base_nucleus, N_DIGITS);
    }
    launches(combine_sample, 1);
    if choice >= Choice::Filtered {
        launches(top_k, N_DIGITS);
        launches(nucleus, N_DIGITS);
    }
    if choice >= Choice::Drawn {
        launches(draw, 1);
    }
}

pub(super) fn record<D: Device>(cuda: &Cuda<D>, pass: &mut Pass, op: Record<'_, Cuda<D>>) {
    let Record { records, slots, scores, base, expert, anti, samples, constraints, n_samples, params } = op;
    let args = RecordArgs {
        records: records.address(),
        slots: slots.address(),
        scores: scores.address(),
        base: base.address(),
        expert: expert.address(),
        anti: anti.address(),
        samples: samples.address(),
        constraints: constraints.address(),
        scratch: cuda.draw.record.address(),
        params,
    };
    let grid = grid(pass, params.mask_words, n_samples, samples);
    RECORD.iter().for_each(|kernel| pass.launch(kernel, grid, &args, Branch::All));
}
