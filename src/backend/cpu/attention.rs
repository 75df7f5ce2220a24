//! The twin of `shaders/attention.wgsl`.
//!
//! A task is a KV head with a few rows of one lane: a block of keys and values is widened once for all their query
//! heads. Where there are too few tasks for the threads, as in decoding, a task is some of the blocks of a row's KV head,
//! and what they gave is folded afterwards: the same numbers in the same order.

use super::combine_sample::{highest_of, larger};
use super::rows::{LANES, fold};
use super::simd::{Kernel, Weight};
use super::*;
use crate::backend::math::exp_nonpositive;
use half::{bf16, f16};
use std::cell::RefCell;

/// Most rows of a task: enough that widening a block costs little beside using it.
const MAX_ROWS: usize = 16;
/// Tasks per thread that balance by themselves.
const TASKS_PER_THREAD: usize = 4;
/// Blocks times heads (a fraction of a microsecond each) from which on threads share them.
const LEAST_TO_SHARE: usize = 32;

/// See [`Attention`].
pub(super) fn run(cpu: &Cpu, op: Attention<'_, Cpu>) {
    match op.params.page.dtype {
        d if d == Dtype::F32 as u32 => attend::<f32>(cpu, op),
        d if d == Dtype::F16 as u32 => attend::<f16>(cpu, op),
        _ => attend::<bf16>(cpu, op),
    }
}

fn attend<T: Pod + Weight>(cpu: &Cpu, op: Attention<'_, Cpu>) {
    let (qkv, places) = (op.qkv.view::<f32>(), op.places.view::<Place>());
    let (table, plane) = (op.page_table.view::<u32>(), op.plane.view::<T>());
    let inputs = Inputs { isa: cpu.isa, params: op.params, qkv: &qkv, places: &places, table: &table, plane: &plane };
    let mut y = op.y.view_mut::<f32>();
    let mut tasks = inputs.tasks(rows::n_rows(op.extents), &mut y);
    let n_blocks: usize = tasks.iter().map(|task| task.blocks.len()).sum();
    let work: usize = tasks.iter().map(|task| task.blocks.len() * task.y.len() * inputs.group()).sum();
    let crew = if work < LEAST_TO_SHARE { Crew::One } else { cpu.crew() };
    let wanted = TASKS_PER_THREAD * crew.size();
    let has_prompt = tasks.iter().any(|task| task.y.len() > 1);
    if crew.size() == 1 || has_prompt || tasks.len() >= wanted || n_blocks == tasks.len() {
        crew.share(&mut tasks, |task| {
            ROOM.with_borrow_mut(|room| inputs.isa.run(Whole { inputs: &inputs, task, room }));
        });
        return;
    }
    let width = inputs.group() * inputs.record();
    let partials = &mut *cpu.partials.borrow_mut();
    partials.resize(partials.len().max(n_blocks * width), 0.0);
    let mut spans = spans(&tasks, n_blocks.div_ceil(wanted), partials, width);
    crew.share(&mut spans, |span| {
        ROOM.with_borrow_mut(|Room { work, .. }| inputs.isa.run(SpanOf { inputs: &inputs, span, work }));
    });
    drop(spans);
    let mut rest = &partials[..];
    for task in &mut tasks {
        let (partials, others) = rest.split_at(task.blocks.len() * width);
        ROOM.with_borrow_mut(|Room { states, .. }| inputs.isa.run(Folded { inputs: &inputs, task, partials, states }));
        rest = others;
    }
}

/// What all tasks read.
struct Inputs<'a, T> {
    isa: Isa,
    params: AttentionParams,
    qkv: &'a [f32],
    places: &'a [Place],
    table: &'a [u32],
    plane: &'a [T],
}

/// A KV head and rows of one lane that follow each other.
struct Task<'a> {
    first_row: usize,
    kv_head: usize,
    /// Blocks of which a row sees keys.
    blocks: Range<usize>,
    /// Of each row, `[group * head_dim]`.
    y: Vec<&'a mut [f32]>,
}

/// A KV head of a sequence, by the place of its page table.
#[derive(Clone, Copy)]
struct Lane {
    table: u32,
    kv_head: usize,
}

/// Some blocks of a task of one row.
struct Span<'a> {
    row: usize,
    kv_head: usize,
    blocks: Range<usize>,
    /// `[blocks][group]` records.
    partials: &'a mut [f32],
}

/// Cuts tasks of one row into spans of at most `most` blocks, with a place for what each block gives.
fn spans<'a>(tasks: &[Task], most: usize, mut rest: &'a mut [f32], width: usize) -> Vec<Span<'a>> {
    let mut spans = Vec::new();
    for Task { first_row, kv_head, blocks, .. } in tasks {
        for first in blocks.clone().step_by(most) {
            let blocks = first..blocks.end.min(first + most);
            let (partials, others) = rest.split_at_mut(blocks.len() * width);
            spans.push(Span { row: *first_row, kv_head: *kv_head, blocks, partials });
            rest = others;
        }
    }
    spans
}

impl<T: Pod + Weight> Inputs<'_, T> {
    fn group(&self) -> usize {
        (self.params.n_heads / self.params.n_kv_heads) as usize
    }

    /// Width of a head, padded to whole lanes.
    #[inline(always)]
    fn stride(&self) -> usize {
        (self.params.head_dim as usize).next_multiple_of(LANES)
    }

    /// Softmax over some keys of a head is a record: `[stride]` values weighted and added, then the largest score and
    /// the sum of weights relative to it.
    #[inline(always)]
    fn record(&self) -> usize {
        self.stride() + LANES
    }

    /// Positions that a row sees.
    #[inline(always)]
    fn visible(&self, row: usize) -> Range<usize> {
        let end = self.places[row].position as usize + 1;
        match self.params.window[row / self.params.cap as usize] as usize {
            0 => 0..end,
            window => end.saturating_sub(window)..end,
        }
    }

    /// Places of a block that a row sees.
    #[inline(always)]
    fn visible_in(&self, row: usize, block: usize) -> Range<usize> {
        let (visible, start) = (self.visible(row), block * KEY_BLOCK);
        let clip = |position: usize| position.clamp(start, start + KEY_BLOCK) - start;
        clip(visible.start)..clip(visible.end)
    }

    /// The tasks of a step. Rows that are not live are zeroed here.
    fn tasks<'y>(&self, n_rows: [usize; MAX_MEMBERS], y: &'y mut [f32]) -> Vec<Task<'y>> {
        let AttentionParams { cap, n_heads, n_kv_heads, head_dim, .. } = self.params;
        let [cap, n_heads, n_kv_heads, head_dim] = [cap, n_heads, n_kv_heads, head_dim].map(|n| n as usize);
        let mut tasks: Vec<Task> = Vec::new();
        for (row, y) in y.chunks_exact_mut(n_heads * head_dim).enumerate() {
            if row % cap >= n_rows[row / cap] {
                continue;
            }
            if self.places[row].live != 1 {
                y.fill(0.0);
                continue;
            }
            let visible = self.visible(row);
            let seen = visible.start / KEY_BLOCK..visible.end.div_ceil(KEY_BLOCK);
            let continues = tasks.last().is_some_and(|task| {
                let next = task.first_row + task.y.len();
                next == row
                    && row % cap > 0
                    && task.y.len() < MAX_ROWS
                    && self.places[task.first_row].table == self.places[row].table
            });
            if !continues {
                let new = |kv_head| Task { first_row: row, kv_head, blocks: seen.clone(), y: Vec::new() };
                tasks.extend((0..n_kv_heads).map(new));
            }
            let first = tasks.len() - n_kv_heads;
            for (task, y) in tasks[first..].iter_mut().zip(y.chunks_exact_mut(n_heads / n_kv_heads * head_dim)) {
                task.blocks = task.blocks.start.min(seen.start)..task.blocks.end.max(seen.end);
                task.y.push(y);
            }
        }
        tasks
    }

    /// The keys (`kv` 0) or values (1) at places `which` of a block of the lane at `table`: of each page the place of
    /// the first, and all of them.
    #[inline(always)]
    fn runs(&self, lane: Lane, kv: usize, block: usize, which: Range<usize>) -> impl Iterator<Item = (usize, &[T])> {
        let AttentionParams { page, n_kv_heads, head_dim, .. } = self.params;
        let (head_dim, n_kv_heads, page_tokens) = (head_dim as usize, n_kv_heads as usize, page.page_tokens as usize);
        let mut next = which.start;
        std::iter::from_fn(move || {
            let first = next;
            if first >= which.end {
                return None;
            }
            let position = block * KEY_BLOCK + first;
            let page_id = self.table[lane.table as usize + position / page_tokens] as usize;
            let cells = Cells::new(&page, page_id, n_kv_heads, head_dim, size_of::<T>());
            let token = position % page_tokens;
            let n = (page_tokens - token).min(which.end - first);
            next += n;
            let at = cells.key(kv * n_kv_heads + lane.kv_head, token as u32);
            Some((first, &self.plane[at..][..n * head_dim]))
        })
    }

    /// Widens runs of keys or values.
    #[inline(always)]
    fn load<'p>(&self, widened: &mut [f32], runs: impl Iterator<Item = (usize, &'p [T])>)
    where
        T: 'p,
    {
        let (head_dim, stride) = (self.params.head_dim as usize, self.stride());
        for (first, from) in runs {
            let to = &mut widened[first * stride..][..from.len() / head_dim * stride];
            if head_dim == stride {
                self.isa.widen(from, to);
            } else {
                for (to, from) in to.chunks_exact_mut(stride).zip(from.chunks_exact(head_dim)) {
                    self.isa.widen(from, &mut to[..head_dim]);
                }
            }
        }
    }

    /// The query heads of `kv_head` of so many rows, padded.
    #[inline(always)]
    fn load_queries(&self, q: &mut Vec<f32>, first_row: usize, n_rows: usize, kv_head: usize) {
        let AttentionParams { n_heads, n_kv_heads, head_dim, .. } = self.params;
        let [n_heads, n_kv_heads, head_dim] = [n_heads, n_kv_heads, head_dim].map(|n| n as usize);
        let (width, group, stride) = ((n_heads + 2 * n_kv_heads) * head_dim, self.group(), self.stride());
        q.clear();
        q.resize(n_rows * group * stride, 0.0);
        for (row, q) in q.chunks_exact_mut(group * stride).enumerate() {
            let heads = &self.qkv[(first_row + row) * width + kv_head * group * head_dim..][..group * head_dim];
            for (q, head) in q.chunks_exact_mut(stride).zip(heads.chunks_exact(head_dim)) {
                q[..head_dim].copy_from_slice(head);
            }
        }
    }

    /// The records of the rows' heads, `[rows][group]`, over the keys of a block; those of a row that sees none are left.
    #[inline(always)]
    fn attend_block(&self, work: &mut Work, first_row: usize, kv_head: usize, block: usize, partials: &mut [f32]) {
        let (stride, group, record) = (self.stride(), self.group(), self.record());
        let Work { q, widened, scores, .. } = work;
        let n_rows = q.len() / (group * stride);
        let lane = Lane { table: self.places[first_row].table, kv_head };
        let (mut first, mut end) = (KEY_BLOCK, 0);
        for row in 0..n_rows {
            let visible = self.visible_in(first_row + row, block);
            if !visible.is_empty() {
                (first, end) = (first.min(visible.start), end.max(visible.end));
            }
        }
        let seen = first..end;
        // A page's keys and values are short runs: all of them are asked for before the first is needed.
        for kv in [0, 1] {
            self.runs(lane, kv, block, seen.clone()).for_each(|(_, run)| self.isa.fetch(run));
        }
        self.load(widened, self.runs(lane, 0, block, seen.clone()));
        for row in 0..n_rows {
            let visible = self.visible_in(first_row + row, block);
            if visible.is_empty() {
                continue;
            }
            let keys = visible.start / LANES * LANES..visible.end.next_multiple_of(LANES);
            for head in row * group..(row + 1) * group {
                let (q, scores) = (&q[head * stride..][..stride], &mut scores[head * KEY_BLOCK..][..KEY_BLOCK]);
                self.isa.dot_keys(q, &widened[keys.start * stride..keys.end * stride], &mut scores[keys.clone()]);
                let scores: &mut [f32; KEY_BLOCK] = scores.try_into().expect("scores of a block");
                let softmax = self.softmax(scores, &visible);
                partials[head * record + stride..][..2].copy_from_slice(&softmax);
            }
        }
        self.load(widened, self.runs(lane, 1, block, seen));
        for row in 0..n_rows {
            let visible = self.visible_in(first_row + row, block);
            if !visible.is_empty() {
                let weights = &scores[row * group * KEY_BLOCK..][..group * KEY_BLOCK];
                let sums = &mut partials[row * group * record..][..group * record];
                self.isa.weigh_values(weights, visible, (widened, stride), (sums, record));
            }
        }
    }

    /// Dot products to weights; the largest score, and the sum of weights in lanes (place mod [`LANES`]), then folded.
    #[inline(always)]
    fn softmax(&self, scores: &mut [f32; KEY_BLOCK], visible: &Range<usize>) -> [f32; 2] {
        let AttentionParams { scale, softcap, .. } = self.params;
        let (first, n) = (visible.start as u32, visible.len() as u32);
        for score in scores.iter_mut() {
            *score *= scale;
        }
        if softcap != 0.0 {
            for score in &mut scores[visible.clone()] {
                *score = softcap * (*score / softcap).tanh();
            }
        }
        for (place, score) in scores.iter_mut().enumerate() {
            *score = if (place as u32).wrapping_sub(first) < n { *score } else { f32::NEG_INFINITY };
        }
        let mut most = [f32::NEG_INFINITY; LANES];
        for scores in scores.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                most[lane] = larger(most[lane], scores[lane]);
            }
        }
        let max = highest_of(most);
        let mut sums = [0.0; LANES];
        for scores in scores.chunks_exact_mut(LANES) {
            for (score, sum) in scores.iter_mut().zip(&mut sums) {
                *score = exp_nonpositive(*score - max);
                *sum += *score;
            }
        }
        [max, fold(sums)]
    }

    /// Folds the records of a block, `[heads]`, into those of the blocks before it.
    #[inline(always)]
    fn fold(&self, states: &mut [f32], partials: &[f32]) {
        let (stride, record) = (self.stride(), self.record());
        for (state, partial) in states.chunks_exact_mut(record).zip(partials.chunks_exact(record)) {
            let max = state[stride].max(partial[stride]);
            let (mine, theirs) = (exp_nonpositive(state[stride] - max), exp_nonpositive(partial[stride] - max));
            state[stride] = max;
            state[stride + 1] = state[stride + 1].mul_add(mine, partial[stride + 1] * theirs);
            for (sum, value) in state[..stride].iter_mut().zip(&partial[..stride]) {
                *sum = sum.mul_add(mine, value * theirs);
            }
        }
    }

    /// Records of nothing.
    #[inline(always)]
    fn start(&self, states: &mut Vec<f32>, heads: usize) {
        states.clear();
        states.resize(heads * self.record(), 0.0);
        for state in states.chunks_exact_mut(self.record()) {
            state[self.stride()] = f32::NEG_INFINITY;
        }
    }

    /// The mean values of a row's heads.
    #[inline(always)]
    fn finish(&self, states: &[f32], y: &mut [f32]) {
        let (head_dim, stride) = (self.params.head_dim as usize, self.stride());
        for (y, state) in y.chunks_exact_mut(head_dim).zip(states.chunks_exact(self.record())) {
            for (y, value) in y.iter_mut().zip(state) {
                *y = value / state[stride + 1];
            }
        }
    }
}

thread_local! {
    /// A thread's room, which grows to the largest task and stays.
    static ROOM: RefCell<Room> = RefCell::default();
}

#[derive(Default)]
struct Room {
    work: Work,
    /// `[rows][group]` records.
    states: Vec<f32>,
    partials: Vec<f32>,
}

/// What a block needs.
#[derive(Default)]
struct Work {
    /// `[rows][group][stride]`.
    q: Vec<f32>,
    /// Keys, then values: `[KEY_BLOCK][stride]`.
    widened: Vec<f32>,
    /// The width of a head that `widened` was zeroed for.
    head_dim: usize,
    /// Scores, then weights: `[rows][group][KEY_BLOCK]`.
    scores: Vec<f32>,
}

impl Work {
    #[inline(always)]
    fn fit(&mut self, heads: usize, head_dim: usize, stride: usize) {
        // Padding must be zeros, and stays so. What else is read before it is written is masked afterwards.
        if self.head_dim != head_dim {
            self.head_dim = head_dim;
            self.widened.clear();
            self.widened.resize(KEY_BLOCK * stride, 0.0);
        }
        if self.scores.len() < heads * KEY_BLOCK {
            self.scores.resize(heads * KEY_BLOCK, 0.0);
        }
    }
}

/// A task from its first block to its last.
struct Whole<'a, 'y, T> {
    inputs: &'a Inputs<'a, T>,
    task: &'a mut Task<'y>,
    room: &'a mut Room,
}

impl<T: Pod + Weight> Kernel for Whole<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Whole { inputs, task: Task { first_row, kv_head, blocks, y }, room } = self;
        let (n_rows, width) = (y.len(), inputs.group() * inputs.record());
        let Room { work, states, partials } = room;
        inputs.load_queries(&mut work.q, *first_row, n_rows, *kv_head);
        work.fit(n_rows * inputs.group(), inputs.params.head_dim as usize, inputs.stride());
        inputs.start(states, n_rows * inputs.group());
        partials.resize(partials.len().max(n_rows * width), 0.0);
        for block in blocks.clone() {
            inputs.attend_block(work, *first_row, *kv_head, block, partials);
            for row in 0..n_rows {
                if !inputs.visible_in(*first_row + row, block).is_empty() {
                    inputs.fold(&mut states[row * width..][..width], &partials[row * width..][..width]);
                }
            }
        }
        for (y, states) in y.iter_mut().zip(states.chunks_exact(width)) {
            inputs.finish(states, y);
        }
    }
}

/// The blocks of a span, each alone.
struct SpanOf<'a, 's, T> {
    inputs: &'a Inputs<'a, T>,
    span: &'a mut Span<'s>,
    work: &'a mut Work,
}

impl<T: Pod + Weight> Kernel for SpanOf<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let SpanOf { inputs, span: Span { row, kv_head, blocks, partials }, work } = self;
        let width = inputs.group() * inputs.record();
        inputs.load_queries(&mut work.q, *row, 1, *kv_head);
        work.fit(inputs.group(), inputs.params.head_dim as usize, inputs.stride());
        for (block, partials) in blocks.clone().zip(partials.chunks_exact_mut(width)) {
            inputs.attend_block(work, *row, *kv_head, block, partials);
        }
    }
}

/// What the spans of a task of one row gave, from its first block to its last.
struct Folded<'a, 'y, T> {
    inputs: &'a Inputs<'a, T>,
    task: &'a mut Task<'y>,
    partials: &'a [f32],
    states: &'a mut Vec<f32>,
}

impl<T: Pod + Weight> Kernel for Folded<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Folded { inputs, task, partials, states } = self;
        inputs.start(states, inputs.group());
        for partials in partials.chunks_exact(states.len()) {
            inputs.fold(states, partials);
        }
        inputs.finish(states, task.y[0]);
    }
}
