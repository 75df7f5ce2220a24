//! Buffers around the two ops: cases go in, what the ops left comes out.

use bytemuck::Zeroable;
use proxytune::backend::math::philox;
use proxytune::backend::params::*;
use proxytune::backend::{Backend, CombineSample, Record};

/// Random numbers of a test, from Philox.
pub(crate) struct Random {
    seed: u32,
    n_drawn: u32,
}

impl Random {
    pub(crate) fn new(seed: u32) -> Self {
        Self { seed, n_drawn: 0 }
    }

    pub(crate) fn bits(&mut self) -> u32 {
        self.n_drawn += 1;
        philox([self.n_drawn, 0, 0, 0x7e57], [self.seed, 0])[0]
    }

    /// In [0, 1).
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 * 2f32.powi(-24)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }

    pub(crate) fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f32::consts::TAU * self.unit()).cos()
    }

    pub(crate) fn normals(&mut self, n: usize, deviation: f32) -> Vec<f32> {
        (0..n).map(|_| deviation * self.normal()).collect()
    }
}

/// What the cases of a launch share.
#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) n_ids: usize,
    /// Widths of the rows of logits, padding included.
    pub(crate) strides: [usize; 3],
    pub(crate) live: Vec<bool>,
    pub(crate) zero_delta: Vec<bool>,
}

impl Shape {
    /// All ids live, rows without padding.
    pub(crate) fn plain(n_ids: usize) -> Self {
        Self { n_ids, strides: [n_ids; 3], live: vec![true; n_ids], zero_delta: vec![false; n_ids] }
    }

    fn mask_words(&self) -> usize {
        self.n_ids.div_ceil(32)
    }

    /// Bits of ids, cut to the mask's words.
    fn mask(&self, ids: &[bool]) -> Vec<u32> {
        let mut words = vec![0u32; self.mask_words()];
        ids.iter().enumerate().filter(|(_, set)| **set).for_each(|(id, _)| words[id / 32] |= 1 << (id % 32));
        words
    }
}

/// One sample.
#[derive(Clone)]
pub(crate) struct Case {
    /// Base, expert, anti-expert; as wide as the shape's strides.
    pub(crate) rows: [Vec<f32>; 3],
    pub(crate) slot: Slot,
    /// Ids allowed later, and at the first position.
    pub(crate) allowed: [Vec<bool>; 2],
    pub(crate) biases: Vec<(u32, f32)>,
    /// As `counts` holds them.
    pub(crate) counts: Vec<u32>,
}

impl Case {
    /// Greedy, nothing restricted, far from any end.
    pub(crate) fn plain(rows: [Vec<f32>; 3], n_ids: usize, alpha: f32) -> Self {
        Self {
            rows,
            slot: Slot {
                alpha,
                max_tokens: 1 << 20,
                lengths: [4, 5, 6],
                repetition_penalty: 1.0,
                seed: [0x1234_5678, 0x9abc_def0],
                ..Slot::zeroed()
            },
            allowed: [vec![true; n_ids], vec![true; n_ids]],
            biases: Vec::new(),
            counts: vec![0; n_ids],
        }
    }

    /// The rows that stand for base, expert and anti-expert: those that are read.
    pub(crate) fn rows_read(&self) -> [&[f32]; 3] {
        let roles = match (self.slot.expert_only, self.slot.alpha) {
            (1, _) => [1; 3],
            (_, 0.0) => [0; 3],
            _ => [0, 1, 2],
        };
        roles.map(|role| &self.rows[role][..])
    }
}

/// What the ops left for one sample.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) slot: Slot,
    /// Scores after step 3.
    pub(crate) combined: Vec<f32>,
    /// Processed scores.
    pub(crate) processed: Vec<f32>,
    pub(crate) counts: Vec<u32>,
    pub(crate) record: StepRecord,
}

impl Outcome {
    pub(crate) fn finish(&self) -> Finish {
        Finish::from_word(self.slot.finish).expect("a way to end")
    }
}

/// The buffers of up to [`MAX_SLOTS`] cases. Slots and rows stand in other orders than the cases.
pub(crate) struct Launch<'a, B: Backend> {
    backend: &'a B,
    n_cases: usize,
    params: CombineSampleParams,
    choice: Choice,
    slots: B::Buf,
    scores: B::Buf,
    counts: B::Buf,
    logits: [B::Buf; 3],
    samples: B::Buf,
    constraints: B::Buf,
    records: B::Buf,
}

impl<'a, B: Backend> Launch<'a, B> {
    pub(crate) fn new(backend: &'a B, shape: &Shape, cases: &[Case]) -> Self {
        let (n, words) = (cases.len(), shape.mask_words());
        assert!(n <= MAX_SLOTS);
        // A device may look at more samples than there are.
        let n_seats = n.next_power_of_two();
        let width = 32 * words;
        let alloc = |words: usize| backend.alloc("test", words).expect("memory for a test");
        let put = |buf: &B::Buf, word: usize, data: &[u32]| {
            backend.upload(buf, 4 * word, bytemuck::cast_slice(data)).expect("an upload within the buffer");
        };
        let launch = Self {
            backend,
            n_cases: n,
            params: CombineSampleParams {
                n_ids: shape.n_ids as u32,
                strides: shape.strides.map(|stride| stride as u32),
                mask_words: words as u32,
                has_counts: 1,
                reserved: [0; 2],
            },
            choice: cases.iter().map(|case| case.slot.choice()).max().expect("a case"),
            slots: alloc(n * size_of::<Slot>() / 4),
            scores: alloc(n * 2 * width),
            counts: alloc(n * width),
            logits: shape.strides.map(|stride| alloc(n * stride)),
            samples: alloc(4 * n_seats),
            constraints: alloc(constraints_words(n, words)),
            records: alloc(n * size_of::<StepRecord>() / 4),
        };
        put(&launch.constraints, 0, &shape.mask(&shape.live));
        put(&launch.constraints, words, &shape.mask(&shape.zero_delta));
        let nobody = Sample { slot: NO_SLOT, ..Sample::default() };
        put(&launch.samples, 0, bytemuck::cast_slice(&vec![nobody; n_seats]));
        for (index, case) in cases.iter().enumerate() {
            let sample = launch.sample(index);
            put(&launch.samples, 4 * index, bytemuck::cast_slice(&[sample]));
            let slot = Slot { n_biases: case.biases.len() as u32, ..case.slot };
            put(&launch.slots, sample.slot as usize * size_of::<Slot>() / 4, bytemuck::cast_slice(&[slot]));
            put(&launch.counts, sample.slot as usize * width, &case.counts);
            let rows = [sample.row_base, sample.row_expert, sample.row_anti];
            for ((row, logits), (buf, stride)) in
                rows.iter().zip(&case.rows).zip(launch.logits.iter().zip(shape.strides))
            {
                assert_eq!(logits.len(), stride);
                put(buf, *row as usize * stride, bytemuck::cast_slice(logits));
            }
            let own = slot_constraints_offset(sample.slot as usize, words);
            let biases: Vec<u32> = case.biases.iter().flat_map(|&(id, bias)| [id, bias.to_bits()]).collect();
            for (at, data) in
                [(0, shape.mask(&case.allowed[0])), (words, shape.mask(&case.allowed[1])), (2 * words, biases)]
            {
                put(&launch.constraints, own + at, &data);
            }
        }
        launch
    }

    fn sample(&self, index: usize) -> Sample {
        let (n, i) = (self.n_cases as u32, index as u32);
        Sample { slot: n - 1 - i, row_base: i, row_expert: (i + 1) % n, row_anti: n - 1 - i }
    }

    fn combine_sample(&self, pass: &mut B::Pass) {
        let [base, expert, anti] = &self.logits;
        let Self { slots, scores, counts, samples, constraints, choice, params, .. } = self;
        let (n_samples, choice, params) = (self.n_cases as u32, *choice, *params);
        let op = CombineSample {
            slots,
            scores,
            counts,
            base,
            expert,
            anti,
            samples,
            constraints,
            n_samples,
            choice,
            params,
        };
        self.backend.combine_sample(pass, op);
        assert_eq!(self.backend.dispatches(pass), B::draw_dispatches(self.choice), "launches of a step");
    }

    /// One step: combine_sample, then record.
    pub(crate) fn step(&self, n_top: u32) {
        let mut pass = self.backend.begin();
        self.combine_sample(&mut pass);
        let [base, expert, anti] = &self.logits;
        let Self { records, slots, scores, samples, constraints, .. } = self;
        let CombineSampleParams { n_ids, strides, mask_words, .. } = self.params;
        let params = RecordParams { n_ids, strides, mask_words, n_top, reserved: [0; 2] };
        let n_samples = self.n_cases as u32;
        let op = Record { records, slots, scores, base, expert, anti, samples, constraints, n_samples, params };
        self.backend.record(&mut pass, op);
        let receipt = self.backend.submit(pass, &[]).expect("a step");
        self.backend.collect(receipt).expect("a step");
    }

    /// A step without record, and the slots after it, in the order of the cases.
    pub(crate) fn draw(&self) -> Vec<Slot> {
        let mut pass = self.backend.begin();
        self.combine_sample(&mut pass);
        let slots = (&self.slots, 0..self.n_cases * size_of::<Slot>());
        let receipt = self.backend.submit(pass, &[slots]).expect("a step");
        let slots: Vec<Slot> = bytemuck::pod_collect_to_vec(&self.backend.collect(receipt).expect("a step"));
        (0..self.n_cases).map(|index| slots[self.sample(index).slot as usize]).collect()
    }

    /// What stands in the buffers, in the order of the cases.
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        let width = 32 * self.params.mask_words as usize;
        let read = |buf: &B::Buf, words: usize| -> Vec<u32> {
            bytemuck::pod_collect_to_vec(&self.backend.read(buf, 0..4 * words).expect("a read"))
        };
        let n = self.n_cases;
        let slots: Vec<Slot> = bytemuck::cast_slice(&read(&self.slots, n * size_of::<Slot>() / 4)).to_vec();
        let records: Vec<StepRecord> =
            bytemuck::cast_slice(&read(&self.records, n * size_of::<StepRecord>() / 4)).to_vec();
        let scores: Vec<f32> = bytemuck::cast_slice(&read(&self.scores, n * 2 * width)).to_vec();
        let counts = read(&self.counts, n * width);
        let outcome = |index: usize| {
            let slot = self.sample(index).slot as usize;
            Outcome {
                slot: slots[slot],
                combined: scores[2 * slot * width..][..width].to_vec(),
                processed: scores[(2 * slot + 1) * width..][..width].to_vec(),
                counts: counts[slot * width..][..width].to_vec(),
                record: records[slot],
            }
        };
        (0..n).map(outcome).collect()
    }
}

/// One step over any number of cases, those next to each other that ask for the like.
pub(crate) fn run<B: Backend>(backend: &B, shape: &Shape, cases: &[Case], n_top: u32) -> Vec<Outcome> {
    let mut order: Vec<usize> = (0..cases.len()).collect();
    order.sort_by_key(|&index| cases[index].slot.choice());
    let mut outcomes: Vec<Option<Outcome>> = vec![None; cases.len()];
    for indices in order.chunks(MAX_SLOTS) {
        let cases: Vec<Case> = indices.iter().map(|&index| cases[index].clone()).collect();
        let launch = Launch::new(backend, shape, &cases);
        launch.step(n_top);
        indices.iter().zip(launch.outcomes()).for_each(|(&index, outcome)| outcomes[index] = Some(outcome));
    }
    outcomes.into_iter().map(|outcome| outcome.expect("every case ran")).collect()
}
