//! The twin of `shaders/attention.wgsl`. One task is a row and a KV head with the query heads that share it.

use super::rows::{LANES, dot};
use super::simd::Kernel;
use super::*;
use crate::backend::math::exp_nonpositive;
use half::{bf16, f16};

/// See [`Attention`].
pub(super) fn run(cpu: &Cpu, op: Attention<'_, Cpu>) {
    match op.params.page.dtype {
        d if d == Dtype::F32 as u32 => attend(cpu, op, |x: f32| x),
        d if d == Dtype::F16 as u32 => attend(cpu, op, f16::to_f32),
        _ => attend(cpu, op, bf16::to_f32),
    }
}

fn attend<T: Pod + Sync>(cpu: &Cpu, op: Attention<'_, Cpu>, widen: impl Fn(T) -> f32 + Sync) {
    let params = op.params;
    let [cap, n_heads, n_kv_heads, head_dim] =
        [params.cap, params.n_heads, params.n_kv_heads, params.head_dim].map(|n| n as usize);
    let group = n_heads / n_kv_heads;
    let width = (n_heads + 2 * n_kv_heads) * head_dim;
    let (qkv, places, n_rows) = (op.qkv.view::<f32>(), op.places.view::<Place>(), rows::n_rows(op.extents));
    let (table, plane) = (op.page_table.view::<u32>(), op.plane.view::<T>());
    let (qkv, places, table, plane) = (&qkv[..], &places[..], &table[..], &plane[..]);
    let lane = Lane { params: &params, table, plane, widen: &widen };
    let isa = cpu.isa;
    let task = |(index, y): &mut (usize, &mut [f32])| {
        let (work, index) = (&mut Work::new(group, head_dim), *index);
        let (row, kv_head) = (index / n_kv_heads, index % n_kv_heads);
        let (member, place) = (row / cap, places[row]);
        if row % cap >= n_rows[member] {
            return;
        }
        y.fill(0.0);
        if place.live == 1 {
            let q = &qkv[row * width + kv_head * group * head_dim..][..group * head_dim];
            isa.run(Task { lane: &lane, work, y, q, place, kv_head, window: params.window[member] });
        }
    };
    let mut y = op.y.view_mut::<f32>();
    let mut tasks: Vec<_> = y.chunks_exact_mut(group * head_dim).enumerate().collect();
    cpu.threads.share(&mut tasks, task);
}

/// Keys and values of a sequence, and how they are read.
struct Lane<'a, T, W> {
    params: &'a AttentionParams,
    table: &'a [u32],
    plane: &'a [T],
    widen: &'a W,
}

/// One thread's room. Widths are padded to whole lanes with zeros.
struct Work {
    stride: usize,
    /// `[group][stride]`.
    q: Vec<f32>,
    /// `[KEY_BLOCK][stride]`.
    keys: Vec<f32>,
    /// `[KEY_BLOCK][stride]`.
    values: Vec<f32>,
    /// `[group]`: what is folded so far.
    heads: Vec<Head>,
    /// The values of the block at hand.
    block: Head,
    /// Dot products, then weights, of the block at hand.
    weights: [f32; KEY_BLOCK],
}

/// Softmax over some keys: the largest score, the sum of weights relative to it, the weighted sum of values.
#[derive(Clone)]
struct Head {
    max: f32,
    sum: f32,
    values: Vec<f32>,
}

impl Work {
    fn new(group: usize, head_dim: usize) -> Self {
        let stride = head_dim.div_ceil(LANES) * LANES;
        let head = Head { max: f32::NEG_INFINITY, sum: 0.0, values: vec![0.0; stride] };
        Work {
            stride,
            q: vec![0.0; group * stride],
            keys: vec![0.0; KEY_BLOCK * stride],
            values: vec![0.0; KEY_BLOCK * stride],
            heads: vec![head.clone(); group],
            block: head,
            weights: [0.0; KEY_BLOCK],
        }
    }

    #[inline(always)]
    fn start(&mut self, q: &[f32], head_dim: usize) {
        for (padded, q) in self.q.chunks_exact_mut(self.stride).zip(q.chunks_exact(head_dim)) {
            padded[..head_dim].copy_from_slice(q);
        }
        for head in &mut self.heads {
            head.clear();
        }
    }

    /// Folds the keys `from..to` of the block at hand into head `index`.
    #[inline(always)]
    fn fold_block(&mut self, index: usize, from: usize, to: usize, scale: f32, softcap: f32) {
        let Work { stride, q, keys, values, heads, block, weights } = self;
        let (stride, q) = (*stride, &q[index * *stride..][..*stride]);
        block.clear();
        for (weight, key) in weights[from..to].iter_mut().zip(keys[from * stride..].chunks_exact(stride)) {
            *weight = scale * dot(q, key);
            if softcap != 0.0 {
                *weight = softcap * (*weight / softcap).tanh();
            }
            block.max = block.max.max(*weight);
        }
        for weight in &mut weights[from..to] {
            *weight = exp_nonpositive(*weight - block.max);
        }
        for (weight, value) in weights[from..to].iter().zip(values[from * stride..].chunks_exact(stride)) {
            block.sum += weight;
            block.values.iter_mut().zip(value).for_each(|(sum, value)| *sum = weight.mul_add(*value, *sum));
        }
        heads[index].fold(block);
    }
}

impl Head {
    #[inline(always)]
    fn clear(&mut self) {
        (self.max, self.sum) = (f32::NEG_INFINITY, 0.0);
        self.values.fill(0.0);
    }

    #[inline(always)]
    fn fold(&mut self, block: &Head) {
        let max = self.max.max(block.max);
        let (mine, theirs) = (exp_nonpositive(self.max - max), exp_nonpositive(block.max - max));
        self.max = max;
        self.sum = self.sum.mul_add(mine, block.sum * theirs);
        let values = self.values.iter_mut().zip(&block.values);
        values.for_each(|(sum, value)| *sum = sum.mul_add(mine, value * theirs));
    }
}

/// The query heads `q` at `place` over KV head `kv_head`.
struct Task<'a, T, W> {
    lane: &'a Lane<'a, T, W>,
    work: &'a mut Work,
    y: &'a mut [f32],
    q: &'a [f32],
    place: Place,
    kv_head: usize,
    window: u32,
}

impl<T: Pod, W: Fn(T) -> f32> Kernel for Task<'_, T, W> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Task { lane, work, y, q, place, kv_head, window } = self;
        let AttentionParams { head_dim, scale, softcap, .. } = *lane.params;
        let head_dim = head_dim as usize;
        let end = place.position as usize + 1;
        let first = if window == 0 { 0 } else { end.saturating_sub(window as usize) };
        work.start(q, head_dim);
        for block in first / KEY_BLOCK..end.div_ceil(KEY_BLOCK) {
            let start = block * KEY_BLOCK;
            let (from, to) = (first.max(start) - start, end.min(start + KEY_BLOCK) - start);
            for key in from..to {
                lane.load(work, place.table as usize, start + key, key, kv_head);
            }
            for head in 0..work.heads.len() {
                work.fold_block(head, from, to, scale, softcap);
            }
        }
        for (y, head) in y.chunks_exact_mut(head_dim).zip(&work.heads) {
            y.iter_mut().zip(&head.values).for_each(|(y, value)| *y = value / head.sum);
        }
    }
}

impl<T: Pod, W: Fn(T) -> f32> Lane<'_, T, W> {
    /// Widens the key and value at `position` into row `key` of the block.
    #[inline(always)]
    fn load(&self, work: &mut Work, table: usize, position: usize, key: usize, kv_head: usize) {
        let AttentionParams { page, n_kv_heads, head_dim, .. } = self.params;
        let (head_dim, page_tokens) = (*head_dim as usize, page.page_tokens as usize);
        let page_id = self.table[table + position / page_tokens] as usize;
        let cells = Cells::new(page, page_id, *n_kv_heads as usize, head_dim, size_of::<T>());
        let token = (position % page_tokens) as u32;
        let to = key * work.stride..key * work.stride + head_dim;
        for (to, from) in [
            (&mut work.keys[to.clone()], cells.key(kv_head, token)),
            (&mut work.values[to], cells.value(kv_head, token)),
        ] {
            to.iter_mut().zip(&self.plane[from..from + head_dim]).for_each(|(to, from)| *to = (self.widen)(*from));
        }
    }
}
