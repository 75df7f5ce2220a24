//! The inner seam: one static trait, ten fused ops. Each op records into a [`Backend::Pass`] and writes into
//! buffers that the caller owns. No shapes as values, no strides, no views, no allocation inside an op, no default
//! bodies: a backend that lacks an op does not compile. It is not a tensor library.
//!
//! An op has one stem in six places: the method here, its struct in [`params`], `kernels/STEM.cu`, `shaders/STEM.wgsl`,
//! `src/backend/cpu/STEM.rs` (the twin that the others are tested against) and the tables of `cuda/` and `wgpu/`.
//!
//! # One canonical sum
//! Each backend has one order of additions per op and weight type, whatever the number of rows, threads or members:
//! a row's bits never depend on its company. Tiles only change how many outputs are held at once.
//!
//! # Rows
//! A launch covers up to [`params::MAX_MEMBERS`] weight sets of equal shape (a twin launch: expert and anti-expert).
//! Row `i` of member `m` is row `m * cap + i` of every activation buffer; how many rows a member has in this step is in
//! the `extents` buffer (`[MAX_MEMBERS]` of [`params::Extent`]). An op's `n_rows` is the largest of them: a bound for
//! the grid, never a count.

pub(crate) mod checks;
pub mod cpu;
pub mod cuda;
pub(crate) mod layouts;
pub mod math;
pub mod params;
pub mod wgpu;

use crate::Result;
use params::*;
use std::ops::Range;

/// How numbers are stored in weights and KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Dtype {
    /// IEEE single.
    F32 = 0,
    /// IEEE half.
    F16 = 1,
    /// bfloat16.
    Bf16 = 2,
}

impl Dtype {
    /// Bytes per element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// The name users see: `f32`, `f16`, `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }
}

/// The gate's activation in norm_gate_up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Activation {
    /// x * sigmoid(x).
    Silu = 0,
    /// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    GeluTanh = 1,
}

/// Shape and type of a weight matrix: `n_rows x n_cols`, row-major, little-endian, `n_cols` a multiple of 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixSpec {
    /// Stored type.
    pub dtype: Dtype,
    /// Outputs.
    pub n_rows: usize,
    /// Inputs.
    pub n_cols: usize,
}

impl MatrixSpec {
    /// Bytes of one member.
    pub fn bytes(&self) -> usize {
        self.n_rows * self.n_cols * self.dtype.bytes()
    }
}

/// A row-major matrix that is read in pieces, so that weights need not stand in memory twice.
pub trait MatrixBytes: Sync {
    /// Whether this is a matrix of `n_bytes` bytes; what can be longer than its data is zero past it.
    fn is_matrix_of(&self, n_bytes: usize) -> bool;
    /// Fills `bytes` with what stands at byte `offset`; both are whole rows, inside the matrix.
    fn copy_to(&self, offset: usize, bytes: &mut [u8]) -> Result<()>;
}

impl<T: AsRef<[u8]> + Sync> MatrixBytes for T {
    fn is_matrix_of(&self, n_bytes: usize) -> bool {
        self.as_ref().len() == n_bytes
    }

    fn copy_to(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(&self.as_ref()[offset..][..bytes.len()]);
        Ok(())
    }
}

/// A device that runs the ops. Lives on one thread.
///
/// Recording never fails: what goes wrong on the device comes out of [`Backend::submit`] or [`Backend::collect`], and
/// is final (every later call fails too).
pub trait Backend: Send + Sized + 'static {
    /// Device memory in 32-bit words, zeroed when allocated.
    type Buf;
    /// A weight matrix, one or two members stacked, in the order of bytes that the backend reads fastest.
    type Matrix;
    /// Ops being recorded: one compute pass of one step.
    type Pass;
    /// A submitted step whose bytes can be collected.
    type Receipt;

    /// Steps the host may read late: 0 where ops run at once.
    const LAG: usize;

    /// How far an activation may be off, relative to itself, as it enters a product with weights of a type: 0 where it
    /// enters as it is, in f32.
    fn product_error(weights: Dtype) -> f64;
    /// Dispatches of combine_sample where a step's samples ask for `choice` at most: one where a sample is one block's.
    fn draw_dispatches(choice: Choice) -> usize;
    /// `cpu`, `wgpu`, and the adapter's name.
    fn describe(&self) -> String;
    /// Bytes of memory that weights and buffers can still have; absent where the device does not tell.
    fn free_memory(&self) -> Option<u64>;
    /// Largest buffer an op can bind, in bytes. Matrices may be larger (the backend splits them); buffers may not.
    fn binding_limit(&self) -> u64;
    /// Zeroed memory of `words` 32-bit words, at least one.
    fn alloc(&self, label: &'static str, words: usize) -> Result<Self::Buf>;
    /// Writes `data` at byte `offset`, both multiples of 4, before anything submitted later.
    fn upload(&self, buf: &Self::Buf, offset: usize, data: &[u8]) -> Result<()>;
    /// Waits for all submitted work and reads a byte range, both ends multiples of 4. For tests and tools.
    fn read(&self, buf: &Self::Buf, range: Range<usize>) -> Result<Vec<u8>>;
    /// Takes one row-major matrix per member (each `spec.bytes()` long) and keeps it in the backend's own order. Members
    /// are read in pieces, by as many threads as the backend likes.
    fn matrix(&self, spec: MatrixSpec, members: &[&dyn MatrixBytes]) -> Result<Self::Matrix>;

    /// Begins a step.
    fn begin(&self) -> Self::Pass;
    /// Compute dispatches recorded so far.
    fn dispatches(&self, pass: &Self::Pass) -> usize;
    /// Sends the step off, and after it copies of the byte ranges in `reads` (multiples of 4).
    fn submit(&self, pass: Self::Pass, reads: &[(&Self::Buf, Range<usize>)]) -> Result<Self::Receipt>;
    /// Waits for a step and returns its `reads`, one after the other. Receipts are collected in order.
    fn collect(&self, receipt: Self::Receipt) -> Result<Vec<u8>>;

    /// See [`CopyPages`].
    fn copy_pages(&self, pass: &mut Self::Pass, op: CopyPages<'_, Self>);
    /// See [`Embed`].
    fn embed(&self, pass: &mut Self::Pass, op: Embed<'_, Self>);
    /// See [`NormMatmul`].
    fn norm_matmul(&self, pass: &mut Self::Pass, op: NormMatmul<'_, Self>);
    /// See [`RopeAppend`].
    fn rope_append(&self, pass: &mut Self::Pass, op: RopeAppend<'_, Self>);
    /// See [`Attention`].
    fn attention(&self, pass: &mut Self::Pass, op: Attention<'_, Self>);
    /// See [`MatmulAdd`].
    fn matmul_add(&self, pass: &mut Self::Pass, op: MatmulAdd<'_, Self>);
    /// See [`NormAdd`].
    fn norm_add(&self, pass: &mut Self::Pass, op: NormAdd<'_, Self>);
    /// See [`NormGateUp`].
    fn norm_gate_up(&self, pass: &mut Self::Pass, op: NormGateUp<'_, Self>);
    /// See [`CombineSample`].
    fn combine_sample(&self, pass: &mut Self::Pass, op: CombineSample<'_, Self>);
    /// See [`Record`].
    fn record(&self, pass: &mut Self::Pass, op: Record<'_, Self>);
}

/// Copy on write: `plane[to] = plane[from]` for each pair, whole pages, bit for bit.
///
/// A page id is valid in every plane, so a step that copies has one launch per plane, all with the same pairs, before
/// its rows. Pairs may come in any order on the device: the pages written are distinct, and none of them is read.
/// Reads and writes one page per pair.
pub struct CopyPages<'a, B: Backend> {
    /// In and out: one layer's plane of pages.
    pub plane: &'a B::Buf,
    /// `[n_copies]` of [`PageCopy`].
    pub copies: &'a B::Buf,
    /// Pairs in this step.
    pub n_copies: u32,
    /// Scalars.
    pub params: CopyPagesParams,
}

/// Resolves rows into places and embeds their tokens.
///
/// `places[r] = resolve(rows[r])`; a row of a slot whose `finish` is not Running gets `live = 0` and `x = 0`.
/// `x[r] = scale[m] * table[m][token]`. A token id at or past the table's rows embeds as zero.
/// Reads rows x d_model weights.
pub struct Embed<'a, B: Backend> {
    /// Out: `[members * cap][d_model]` f32.
    pub x: &'a B::Buf,
    /// Out: `[members * cap]` of [`Place`].
    pub places: &'a B::Buf,
    /// `[n_vocab][d_model]` per member.
    pub table: &'a B::Matrix,
    /// `[members * cap]` of [`Row`].
    pub rows: &'a B::Buf,
    /// `[n_slots]` of [`Slot`].
    pub slots: &'a B::Buf,
    /// `[MAX_MEMBERS]` of [`Extent`].
    pub extents: &'a B::Buf,
    /// Largest number of rows of a member.
    pub n_rows: u32,
    /// Scalars.
    pub params: EmbedParams,
}

/// `y[i] = softcap(scale (r * sum_k W[n][k] (g[k] x[k]) + bias[n]))` with `x = x[gather[i]]` (or `x[i]`) and, where a
/// gain is given, `r = 1 / sqrt(mean(x^2) + eps)`, the sum of squares taken from the same loads; without a gain r = g = 1.
/// Reads W once.
pub struct NormMatmul<'a, B: Backend> {
    /// Out: `[members * cap_out][n_out]` f32.
    pub y: &'a B::Buf,
    /// `[n_out][n_in]` per member.
    pub w: &'a B::Matrix,
    /// `[members * cap_in][n_in]` f32.
    pub x: &'a B::Buf,
    /// `[members][n_in]` f32; absent: no norm.
    pub gain: Option<&'a B::Buf>,
    /// `[members][n_out]` f32.
    pub bias: Option<&'a B::Buf>,
    /// `[members * cap_out]` u32: rows of the same member (0 based within it), counted by `n_logits`; absent: row i.
    pub gather: Option<&'a B::Buf>,
    /// `[MAX_MEMBERS]` of [`Extent`].
    pub extents: &'a B::Buf,
    /// Largest number of output rows of a member.
    pub n_rows: u32,
    /// Scalars.
    pub params: NormMatmulParams,
}

/// q/k norm where gains are given, per head or over all heads; rotary positions on q (in place) and k where there is a
/// table; q times its factor of position; then k and v into their page.
///
/// Rotary pairs are (i, i + head_dim / 2), as in the Hugging Face layout. Rows that are not live write nothing.
pub struct RopeAppend<'a, B: Backend> {
    /// In and out: `[members * cap][(n_heads + 2 n_kv_heads) * head_dim]` f32; only the q part is rewritten.
    pub qkv: &'a B::Buf,
    /// Out: one layer's plane of pages.
    pub plane: &'a B::Buf,
    /// `[members * cap]` of [`Place`].
    pub places: &'a B::Buf,
    /// `[n_slots][N_LANES][max_pages]` u32 page ids.
    pub page_table: &'a B::Buf,
    /// `[members][max_positions][head_dim / 2]` of (cos, sin) f32, computed on the host in f64; absent: no rotation.
    pub rotary: Option<&'a B::Buf>,
    /// `[members][head_dim]` f32, or `[members][n_heads * head_dim]` where the norm is wide.
    pub q_gain: Option<&'a B::Buf>,
    /// `[members][head_dim]` f32, or `[members][n_kv_heads * head_dim]` where the norm is wide.
    pub k_gain: Option<&'a B::Buf>,
    /// `[MAX_MEMBERS]` of [`Extent`].
    pub extents: &'a B::Buf,
    /// Largest number of rows of a member.
    pub n_rows: u32,
    /// Scalars.
    pub params: RopeAppendParams,
}

/// Causal attention of each row over its lane's pages, positions `0..=position` (or the window's).
///
/// Canonical order: keys in blocks of [`KEY_BLOCK`] aligned to position 0; blocks, or a fixed part of each, give (max,
/// sum, weighted values) and are folded left to right, the parts at the end: each backend has one such order. Keys past
/// the position count as absent and are replaced by zero when loaded, so poison there cannot spread. Rows that are not
/// live give zero.
/// Reads the lane's KV from memory once per row and KV head: the query heads that share one find it in the cache.
pub struct Attention<'a, B: Backend> {
    /// Out: `[members * cap][n_heads * head_dim]` f32.
    pub y: &'a B::Buf,
    /// `[members * cap][(n_heads + 2 n_kv_heads) * head_dim]` f32: only q is read.
    pub qkv: &'a B::Buf,
    /// One layer's plane of pages.
    pub plane: &'a B::Buf,
    /// `[members * cap]` of [`Place`].
    pub places: &'a B::Buf,
    /// `[n_slots][N_LANES][max_pages]` u32 page ids.
    pub page_table: &'a B::Buf,
    /// `[MAX_MEMBERS]` of [`Extent`].
    pub extents: &'a B::Buf,
    /// Largest number of rows of a member.
    pub n_rows: u32,
    /// Scalars.
    pub params: AttentionParams,
}

/// `x[i][n] += scale (sum_k W[n][k] y[i][k] (+ bias[n]))`. Reads W once.
pub struct MatmulAdd<'a, B: Backend> {
    /// In and out: `[members * cap][n_out]` f32.
    pub x: &'a B::Buf,
    /// `[n_out][n_in]` per member.
    pub w: &'a B::Matrix,
    /// `[members * cap][n_in]` f32.
    pub y: &'a B::Buf,
    /// `[members][n_out]` f32.
    pub bias: Option<&'a B::Buf>,
    /// `[MAX_MEMBERS]` of [`Extent`].
    pub extents: &'a B::Buf,
    /// Largest number of rows of a member.
    pub n_rows: u32,
    /// Scalars.
    pub params: MatmulAddParams,
}

/// `x[i] += rms_norm(y[i]) * gain`, for models that norm after a block.
pub struct NormAdd<'a, B: Backend> {
    /// In and out: `[members * cap][d_model]` f32.
    pub x: &'a B::Buf,
    /// `[members * cap][d_model]` f32.
    pub y: &'a B::Buf,
    /// `[members][d_model]` f32.
    pub gain: &'a B::Buf,
    /// `[MAX_MEMBERS]` of [`Extent`].
    pub extents: &'a B::Buf,
    /// Largest number of rows of a member.
    pub n_rows: u32,
    /// Scalars.
    pub params: NormAddParams,
}

/// `h[i][n] = act(r * sum_k Wg[n][k] g[k] x[k]) * (r * sum_k Wu[n][k] g[k] x[k])`, norm as in [`NormMatmul`]; without
/// a gain r = g = 1. Reads both matrices once.
pub struct NormGateUp<'a, B: Backend> {
    /// Out: `[members * cap][n_out]` f32.
    pub h: &'a B::Buf,
    /// `[n_out][n_in]` per member.
    pub w_gate: &'a B::Matrix,
    /// `[n_out][n_in]` per member, of the gate's type.
    pub w_up: &'a B::Matrix,
    /// `[members * cap][n_in]` f32.
    pub x: &'a B::Buf,
    /// `[members][n_in]` f32; absent: no norm.
    pub gain: Option<&'a B::Buf>,
    /// `[MAX_MEMBERS]` of [`Extent`].
    pub extents: &'a B::Buf,
    /// Largest number of rows of a member.
    pub n_rows: u32,
    /// Scalars.
    pub params: NormGateUpParams,
}

/// Three logits rows per sample to one token id: difference, masks, penalties, temperature, filters, softmax, draw, and
/// the slot advanced. One dispatch where all is greedy, and where a workgroup does the whole of a sample; many blocks to a
/// sample need more, since none waits for another. A slot that is not Running is left alone, but for `drew = 0`.
///
/// Order of operations:
/// 1. a NaN or +inf (by bits) in a live column of a row that is read, or such a row without a finite live column:
///    `finish = Numeric`. The same where step 3 leaves no finite score, or a score overflows to +inf in 3, 5 or 6;
/// 2. base mask: ids outside the base's nucleus (`base_top_p`) or below `base_min_p * max p_base` become -inf;
/// 3. `s = z_b + alpha (z_e - z_a)`; ids of the second constraints mask use z_b alone. alpha = 0 reads only z_b.
///    z_b = -inf stays; both -inf gives difference 0; z_e alone gives -inf; z_a alone is Numeric (for alpha < 0 the
///    two exchange places). The result is kept in `scores[slot][0]`. An `expert_only` slot has alpha = 0 and reads only
///    z_e, in place of z_b here and in steps 1 and 2: its bits are those of a slot whose base is that expert;
/// 4. live ids, the slot's allowed ids (the second of its masks at the first position), stop ids while
///    `produced < min_tokens`. Nothing left: `finish = Empty`;
/// 5. biases;
/// 6. penalties: repetition (s > 0 ? s / r : s * r) over ids counted in prompt or response, then presence and
///    frequency over the response. `counts[slot][id]`: bit 31 = in the base prompt, the rest = times in the response;
/// 7. greedy: arg-max, ties to the lowest id. Else t = (s - max) * inverse_temperature;
/// 8. top-k by (t, lowest id), top-p on what is left, then min-p: e^t >= min_p. Masses are integers: e^t in units
///    of 2^-36, truncated, so that their sum is exact in any order; the nucleus is the smallest prefix with
///    `mass * 2^32 >= total * p`, at least one id. `scores[slot][1]` keeps the processed scores: t, and -inf where an
///    id cannot be drawn; less ln(sum e^t) they are processed log-probabilities (greedy: s after step 6);
/// 9. Gumbel maximum: arg-max of t - ln(E), `E = -log1p(-v)`, `v = min((f32(x) + 0.5) * 2^-32, 1 - 2^-24)`, x = lane
///    id % 4 of Philox4x32-10 with key `seed`, counter (id / 4, produced, sample_index, 0); ties to the lowest id.
///
/// Then, unless it ended above: `drew` becomes 1, the id goes to `last_id` and `ring[produced % RING]`, `produced` and
/// `lengths` grow by one, the id is counted where the slot is penalised, and a stop id (`Stop`) or
/// `produced == max_tokens` (`Length`) ends it.
/// Reads (1 + 2) x n_ids x 4 bytes per sample.
pub struct CombineSample<'a, B: Backend> {
    /// In and out: `[n_slots]` of [`Slot`].
    pub slots: &'a B::Buf,
    /// Out: `[n_slots][2][32 * mask_words]` f32: scores after step 3, and processed scores; -inf where no id is live.
    pub scores: &'a B::Buf,
    /// In and out: `[n_slots][32 * mask_words]` u32, where `has_counts`; else any buffer.
    pub counts: &'a B::Buf,
    /// Rows of `strides[0]` f32.
    pub base: &'a B::Buf,
    /// Rows of `strides[1]` f32; may be the base's buffer.
    pub expert: &'a B::Buf,
    /// Rows of `strides[2]` f32; may be the expert's or the base's buffer.
    pub anti: &'a B::Buf,
    /// `[n_samples]` of [`Sample`], each slot at most once. Where the buffer has more, the slots of those are [`NO_SLOT`].
    pub samples: &'a B::Buf,
    /// See [`constraints_words`].
    pub constraints: &'a B::Buf,
    /// Samples in this step.
    pub n_samples: u32,
    /// The most that a Running slot of the samples asks for.
    pub choice: Choice,
    /// Scalars.
    pub params: CombineSampleParams,
}

/// Ranks, divergences and top ids of what [`CombineSample`] just did, per sample; runs after it in the same pass.
/// Log-probabilities are over live ids (and, combined, over ids that the base mask left). 0 * inf = 0. With alpha = 0
/// the pair's rows are not read, and their figures are those of the base; where the slot is `expert_only`, the expert's
/// row is the only one that is read, and all figures, `z_base` too, are those of the expert.
pub struct Record<'a, B: Backend> {
    /// Out: `[n_slots]` of [`StepRecord`]; a slot with `drew = 0` is left alone.
    pub records: &'a B::Buf,
    /// As combine_sample left them.
    pub slots: &'a B::Buf,
    /// As combine_sample left them.
    pub scores: &'a B::Buf,
    /// As in [`CombineSample`].
    pub base: &'a B::Buf,
    /// As in [`CombineSample`].
    pub expert: &'a B::Buf,
    /// As in [`CombineSample`].
    pub anti: &'a B::Buf,
    /// As in [`CombineSample`].
    pub samples: &'a B::Buf,
    /// As in [`CombineSample`].
    pub constraints: &'a B::Buf,
    /// Samples in this step.
    pub n_samples: u32,
    /// Scalars.
    pub params: RecordParams,
}
