//! What every backend asserts of an op before it records it: a shader would read and write past its rows, and the CPU
//! would take other rows than are meant. All are a programmer's errors. Beside them, memory that shows whoever reads what
//! it does not own.

use super::*;

/// A matrix's outputs and inputs.
type Shape = [usize; 2];

/// Memory of rows or pages, none of which a token owns yet. With debug assertions it starts full of NaN: what no live token
/// wrote must not matter.
pub(crate) fn unowned<B: Backend>(backend: &B, label: &'static str, words: usize) -> Result<B::Buf> {
    let memory = backend.alloc(label, words)?;
    if cfg!(debug_assertions) {
        backend.upload(&memory, 0, bytemuck::cast_slice(&vec![u32::MAX; words]))?;
    }
    Ok(memory)
}

/// Members of an op without a matrix, from the rows that its buffers have: blocks that have nothing to do cost a driver that
/// runs shaders on the CPU as much as others.
pub(super) fn members(n_rows: usize, cap: u32) -> u32 {
    (n_rows as u32 / cap.max(1)).clamp(1, MAX_MEMBERS as u32)
}

/// Of the bytes that a matrix is made of.
pub(super) fn check_members(spec: MatrixSpec, members: &[&dyn MatrixBytes]) {
    assert!((1..=MAX_MEMBERS).contains(&members.len()), "a matrix of {} members", members.len());
    assert!(members.iter().all(|bytes| bytes.is_matrix_of(spec.bytes())), "each member has {} bytes", spec.bytes());
}

fn check_rows(n_rows: u32, cap: u32) {
    assert!(n_rows <= cap, "{n_rows} rows where {cap} fit");
}

fn check_shape(shape: Shape, params: [u32; 2]) {
    assert_eq!(shape, params.map(|n| n as usize), "outputs and inputs of a matrix");
}

fn check_heads(n_heads: u32, n_kv_heads: u32, head_dim: u32) {
    assert!(n_heads.is_multiple_of(n_kv_heads), "{n_heads} heads share {n_kv_heads} key heads");
    assert!(head_dim.is_multiple_of(2) && head_dim as usize <= MAX_HEAD_DIM, "a head of {head_dim}");
}

impl<B: Backend> Embed<'_, B> {
    pub(super) fn check(&self, [n_vocab, n_cols]: Shape) {
        check_rows(self.n_rows, self.params.cap);
        check_shape([n_vocab, n_cols], [n_vocab as u32, self.params.d_model]);
    }
}

impl<B: Backend> NormMatmul<'_, B> {
    pub(super) fn check(&self, w: Shape) {
        check_rows(self.n_rows, self.params.cap_out);
        check_shape(w, [self.params.n_out, self.params.n_in]);
    }
}

impl<B: Backend> RopeAppend<'_, B> {
    pub(super) fn check(&self) {
        let RopeAppendParams { cap, n_heads, n_kv_heads, head_dim, .. } = self.params;
        check_rows(self.n_rows, cap);
        check_heads(n_heads, n_kv_heads, head_dim);
    }
}

impl<B: Backend> Attention<'_, B> {
    pub(super) fn check(&self) {
        let AttentionParams { cap, n_heads, n_kv_heads, head_dim, .. } = self.params;
        check_rows(self.n_rows, cap);
        check_heads(n_heads, n_kv_heads, head_dim);
    }
}

impl<B: Backend> MatmulAdd<'_, B> {
    pub(super) fn check(&self, w: Shape) {
        check_rows(self.n_rows, self.params.cap);
        check_shape(w, [self.params.n_out, self.params.n_in]);
    }
}

impl<B: Backend> NormAdd<'_, B> {
    pub(super) fn check(&self) {
        check_rows(self.n_rows, self.params.cap);
    }
}

impl<B: Backend> NormGateUp<'_, B> {
    pub(super) fn check(&self, w_gate: Shape, w_up: Shape) {
        check_rows(self.n_rows, self.params.cap);
        check_shape(w_gate, [self.params.n_out, self.params.n_in]);
        check_shape(w_up, [self.params.n_out, self.params.n_in]);
    }
}

fn check_samples(n_samples: u32, samples: usize, n_ids: u32, strides: [u32; 3], mask_words: u32) {
    let n = n_samples as usize;
    assert!(n <= MAX_SLOTS && n <= samples, "{n} samples of {samples}");
    let fits = n_ids <= 32 * mask_words && n_ids as usize <= MAX_VOCAB && strides.iter().all(|&stride| n_ids <= stride);
    assert!(fits, "{n_ids} ids in rows of {strides:?} and masks of {mask_words} words");
}

impl<B: Backend> CombineSample<'_, B> {
    /// `samples`: how many the buffer has room for.
    pub(super) fn check(&self, samples: usize) {
        let CombineSampleParams { n_ids, strides, mask_words, .. } = self.params;
        check_samples(self.n_samples, samples, n_ids, strides, mask_words);
    }
}

impl<B: Backend> Record<'_, B> {
    /// `samples`: how many the buffer has room for.
    pub(super) fn check(&self, samples: usize) {
        let RecordParams { n_ids, strides, mask_words, n_top, .. } = self.params;
        check_samples(self.n_samples, samples, n_ids, strides, mask_words);
        assert!(n_top as usize <= MAX_RECORD_TOP, "{n_top} top entries");
    }
}

/// Copies of pages, of which there are `n_pages`. Devices copy in any order: no page may be written that another copy
/// writes or reads.
pub(crate) fn check_copies(copies: &[PageCopy], n_pages: usize) {
    let mut written: Vec<u32> = copies.iter().map(|copy| copy.to).collect();
    written.sort_unstable();
    assert!(written.windows(2).all(|pair| pair[0] < pair[1]), "two copies to one page: {copies:?}");
    for &PageCopy { from, to } in copies {
        assert!(written.binary_search(&from).is_err(), "a page is copied from and to: {copies:?}");
        assert!(from.max(to) < n_pages as u32, "a copy of {from} to {to}: there are {n_pages} pages");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::backend::wgpu::{self, Wgpu};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// What `run` must panic with.
    fn refusal(run: impl FnOnce()) -> String {
        let payload = catch_unwind(AssertUnwindSafe(run)).expect_err("it is refused");
        payload.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    /// One sample fits, and 32 ids do.
    fn refuses_samples_that_do_not_fit<B: Backend>(backend: &B) {
        let alloc = |words: usize| backend.alloc("test", words).expect("memory for a test");
        let [slots, records] = [size_of::<Slot>() / 4, size_of::<StepRecord>() / 4].map(alloc);
        let [scores, counts, base, expert, anti, samples] = [64, 32, 32, 32, 32, 4].map(alloc);
        let constraints = alloc(constraints_words(1, 1));
        let (slots, scores, samples, constraints) = (&slots, &scores, &samples, &constraints);
        let (base, expert, anti, strides, mask_words) = (&base, &expert, &anti, [32; 3], 1);
        let draw = |n_samples, n_ids| {
            let (counts, choice) = (&counts, Choice::Greedy);
            let params = CombineSampleParams { n_ids, strides, mask_words, has_counts: 1, reserved: [0; 2] };
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
            backend.combine_sample(&mut backend.begin(), op);
        };
        let record = |n_samples, n_ids, n_top| {
            let (records, params) = (&records, RecordParams { n_ids, strides, mask_words, n_top, reserved: [0; 2] });
            let op = Record { records, slots, scores, base, expert, anti, samples, constraints, n_samples, params };
            backend.record(&mut backend.begin(), op);
        };
        for refusal in [refusal(|| draw(2, 32)), refusal(|| record(2, 32, 1))] {
            assert!(refusal.contains("2 samples of 1"), "{refusal}");
        }
        for refusal in [refusal(|| draw(1, 33)), refusal(|| record(1, 33, 1))] {
            assert!(refusal.contains("33 ids in rows of [32, 32, 32] and masks of 1 words"), "{refusal}");
        }
        let too_many = MAX_RECORD_TOP as u32 + 1;
        let refusal = refusal(|| record(1, 32, too_many));
        assert!(refusal.contains(&format!("{too_many} top entries")), "{refusal}");
    }

    #[test]
    fn the_cpu_and_wgpu_refuse_samples_that_do_not_fit() {
        refuses_samples_that_do_not_fit(&Cpu::new(Some(1)).expect("the CPU is here"));
        let options = wgpu::Options { software: true, ..wgpu::Options::default() };
        refuses_samples_that_do_not_fit(
            &Wgpu::open(&options).expect("a Vulkan adapter (scripts/test installs lavapipe)"),
        );
    }
}
