//! The scalars of each op and the records that live on the device, `repr(C)`, the same layout on every backend.
//!
//! Everything a recorded launch must not hold (lengths, positions, page tables, alpha, sampling parameters) is in the
//! records; everything that never changes after load is in the params. WGSL and CUDA mirror these structs field by
//! field; a test reflects the shaders and compares sizes and offsets.

use bytemuck::{Pod, Zeroable};

/// Weight sets that one launch can hold: a twin launch stacks expert and anti-expert.
pub const MAX_MEMBERS: usize = 2;
/// Token sequences a slot may own: one per role; roles with equal weights and tokens share one.
pub const N_LANES: usize = 3;
/// Keys folded at a time by attention, aligned to position 0: part of the canonical sum.
pub const KEY_BLOCK: usize = 64;
/// Produced ids that a slot remembers for a host that reads late. More than any lag.
pub const RING: usize = 16;
/// Stop ids per slot.
pub const MAX_STOP_IDS: usize = 32;
/// logit_bias entries per slot.
pub const MAX_BIASES: usize = 1024;
/// Top entries in the record of a step.
pub const MAX_RECORD_TOP: usize = 20;
/// Widest logits row.
pub const MAX_VOCAB: usize = 262_208;
/// Widest head: attention keeps one in the memory of a workgroup.
pub const MAX_HEAD_DIM: usize = 256;
/// Slots one step can advance.
pub const MAX_SLOTS: usize = 64;

/// In [`Row::token`] and [`Row::position`]: take it from the slot's cell.
pub const FROM_SLOT: u32 = u32::MAX;
/// In [`Sample::slot`]: no sample at all.
pub const NO_SLOT: u32 = u32::MAX;

/// One token position of one lane, computed in a step. Rows of member `m` start at index `m * cap` of the row buffers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Row {
    /// Slot the row belongs to.
    pub slot: u32,
    /// Lane of that slot.
    pub lane: u32,
    /// Token id, or [`FROM_SLOT`]: the slot's `last_id`.
    pub token: u32,
    /// Position, or [`FROM_SLOT`]: the slot's length in that lane.
    pub position: u32,
}

/// A row resolved by embed; later ops read only this.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Place {
    /// First entry of the lane's page table: `(slot * N_LANES + lane) * max_pages`.
    pub table: u32,
    /// Position of the row's token in its lane.
    pub position: u32,
    /// 0 where the slot has finished: the row writes no KV, and its activations are zero.
    pub live: u32,
    /// The token id.
    pub token: u32,
}

/// Rows of one member in this step.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Extent {
    /// Rows computed.
    pub n_rows: u32,
    /// Rows gathered for the LM head.
    pub n_logits: u32,
}

/// A page to copy in every plane, see copy_pages.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PageCopy {
    /// Page id to read.
    pub from: u32,
    /// Page id to write: a page that one lane alone holds.
    pub to: u32,
}

/// Why a slot no longer runs ([`Slot::finish`]).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Still producing.
    Running = 0,
    /// Drew a stop id; the id is the last in the ring.
    Stop = 1,
    /// Reached max_tokens.
    Length = 2,
    /// NaN or +inf in a live column of a row that was read, or no finite column.
    Numeric = 3,
    /// Masks and policies left no id.
    Empty = 4,
    /// Ended by the host (stop string, cancellation).
    Cancelled = 5,
}

impl Finish {
    /// The variant of a slot's `finish` word; `None` where it is no variant's, which a sane device never writes.
    pub fn from_word(word: u32) -> Option<Self> {
        [Finish::Running, Finish::Stop, Finish::Length, Finish::Numeric, Finish::Empty, Finish::Cancelled]
            .get(word as usize)
            .copied()
    }
}

/// What it takes to choose a slot's next id; what takes more includes what takes less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Choice {
    /// The best of all.
    Greedy,
    /// A draw among all ids, or those that min-p leaves.
    Drawn,
    /// A draw among what top-k or top-p leave.
    Filtered,
    /// Any of these, among what the base's own filters leave.
    BaseMasked,
}

/// A running sequence on the device: written by the host at admission, advanced by combine_sample.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Slot {
    /// Id sampled last; what [`FROM_SLOT`] embeds next.
    pub last_id: u32,
    /// Ids sampled so far: the position in the response of the next draw.
    pub produced: u32,
    /// A [`Finish`].
    pub finish: u32,
    /// The slot ends with [`Finish::Length`] when `produced` reaches it.
    pub max_tokens: u32,
    /// Per lane, the position at which `last_id` is embedded next. At admission: prompt length - 1, so that the first
    /// draw makes it the prompt length.
    pub lengths: [u32; N_LANES],
    /// Stop ids are never sampled while `produced` is below it.
    pub min_tokens: u32,
    /// Valid entries of `stop_ids`.
    pub n_stop_ids: u32,
    /// Valid (id, bias) pairs of the slot in the constraints buffer, sorted by id, each id once.
    pub n_biases: u32,
    /// 1: the slot uses penalties, and its row of `counts` is kept.
    pub penalised: u32,
    /// Weight of expert - anti. 0: the pair's rows are not read.
    pub alpha: f32,
    /// 1 / T in f32, made on the host. 0: greedy.
    pub inverse_temperature: f32,
    /// Ids kept by top-k. 0: off.
    pub top_k: u32,
    /// top-p as p * 2^32, at least 1. 0: off (p = 1).
    pub top_p: u32,
    /// min-p. 0: off.
    pub min_p: f32,
    /// Repetition penalty. 1: neutral.
    pub repetition_penalty: f32,
    /// Presence penalty. 0: neutral.
    pub presence_penalty: f32,
    /// Frequency penalty. 0: neutral.
    pub frequency_penalty: f32,
    /// Nucleus of the base that ids must be in, as p * 2^32, at least 1. 0: off.
    pub base_top_p: u32,
    /// Ids must have p_base >= this * max p_base. 0: off.
    pub base_min_p: f32,
    /// Philox key, low word first.
    pub seed: [u32; 2],
    /// Index among `n` samples of one request: Philox counter word 2.
    pub sample_index: u32,
    /// 1: the last step that sampled the slot drew an id.
    pub drew: u32,
    /// 1: the expert's row is read in place of the base's, and no other; `alpha` is then 0. The slot draws and is
    /// recorded as one whose base is that expert.
    pub expert_only: u32,
    /// Padding to a multiple of 16 bytes.
    pub reserved: [u32; 2],
    /// Ids that end the slot.
    pub stop_ids: [u32; MAX_STOP_IDS],
    /// Id number `i` of the response is at `i % RING`.
    pub ring: [u32; RING],
}

impl Slot {
    /// What its parameters ask for.
    pub fn choice(&self) -> Choice {
        if self.base_top_p != 0 || self.base_min_p != 0.0 {
            Choice::BaseMasked
        } else if self.inverse_temperature == 0.0 {
            Choice::Greedy
        } else if self.top_k != 0 || self.top_p != 0 {
            Choice::Filtered
        } else {
            Choice::Drawn
        }
    }
}

/// A logits row triple to combine for a slot: indices of rows in the base, expert and anti-expert logits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Sample {
    /// Slot to advance, or [`NO_SLOT`].
    pub slot: u32,
    /// Row of the base's logits.
    pub row_base: u32,
    /// Row of the expert's logits.
    pub row_expert: u32,
    /// Row of the anti-expert's logits.
    pub row_anti: u32,
}

/// One of the top ids of a combined row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct TopEntry {
    /// Token id.
    pub id: u32,
    /// Its logit under the base.
    pub z_base: f32,
    /// Its logit under the expert.
    pub z_expert: f32,
    /// Its logit under the anti-expert.
    pub z_anti: f32,
    /// Its combined score, after step 3 of the order of operations.
    pub score: f32,
}

/// What `record` writes per slot and step. Quadruples are base, expert, anti-expert, combined. Nats.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct StepRecord {
    /// Position in the response.
    pub position: u32,
    /// The id drawn.
    pub chosen: u32,
    /// Most probable live id under the base.
    pub base_argmax: u32,
    /// Most probable live id of the combined row.
    pub combined_argmax: u32,
    /// Log-probability of `chosen`.
    pub logprob: [f32; 4],
    /// Rank of `chosen`, 0 for the most probable; ties by lowest id.
    pub rank: [u32; 4],
    /// Entropy.
    pub entropy: [f32; 4],
    /// KL(combined || base).
    pub kl_combined_base: f32,
    /// KL(expert || anti-expert).
    pub kl_expert_anti: f32,
    /// -sum p_expert ln p_anti.
    pub cross_entropy: f32,
    /// alpha used.
    pub alpha: f32,
    /// Valid entries of `top`.
    pub n_top: u32,
    /// Padding to a multiple of 16 bytes.
    pub reserved: [u32; 3],
    /// Best ids of the combined row, best first.
    pub top: [TopEntry; MAX_RECORD_TOP],
}

/// embed: `x = scale * table[token]`, and rows resolved into places.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct EmbedParams {
    /// Row capacity per member.
    pub cap: u32,
    /// Width of x.
    pub d_model: u32,
    /// Page-table entries per lane.
    pub max_pages: u32,
    /// Padding.
    pub reserved: u32,
    /// Factor per member.
    pub scale: [f32; MAX_MEMBERS],
}

/// norm_matmul: `y = softcap(scale * (r * sum W (g x) + bias))`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct NormMatmulParams {
    /// Row capacity of x per member.
    pub cap_in: u32,
    /// Row capacity of y per member (differs from `cap_in` where rows are gathered).
    pub cap_out: u32,
    /// Columns of W, width of x.
    pub n_in: u32,
    /// Rows of W, width of y.
    pub n_out: u32,
    /// eps of the norm per member.
    pub eps: [f32; MAX_MEMBERS],
    /// `c * tanh(y / c)`. 0: off.
    pub softcap: f32,
    /// Factor before the soft cap. 1: none.
    pub scale: f32,
}

/// Where a member's keys and values stand in a page.
///
/// A page holds `[K | V][n_kv_heads][tokens][head_dim]` elements of the cache dtype, and starts at word
/// `page_id * page_words` of every layer's plane.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct PageParams {
    /// 32-bit words per page; the same for every member.
    pub page_words: u32,
    /// Tokens per page of this member.
    pub page_tokens: u32,
    /// A [`crate::backend::Dtype`] as its number.
    pub dtype: u32,
    /// Page-table entries per lane.
    pub max_pages: u32,
}

/// copy_pages: `plane[to] = plane[from]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct CopyPagesParams {
    /// 32-bit words per page.
    pub page_words: u32,
    /// Padding.
    pub reserved: [u32; 3],
}

/// rope_append.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct RopeAppendParams {
    /// Page geometry.
    pub page: PageParams,
    /// Row capacity per member.
    pub cap: u32,
    /// Query heads.
    pub n_heads: u32,
    /// Key and value heads.
    pub n_kv_heads: u32,
    /// Width of a head; even.
    pub head_dim: u32,
    /// Positions in each member's rotary table.
    pub max_positions: u32,
    /// 1: one q/k norm spans all heads of q (of k), and its gain is that wide; 0: each head has its own.
    pub wide_norm: u32,
    /// eps of the q/k norm per member.
    pub eps: [f32; MAX_MEMBERS],
    /// Per member, b of the factor `1 + b ln(1 + floor(position / q_length))` of q. 0: off.
    pub q_beta: [f32; MAX_MEMBERS],
    /// Positions until that factor grows, at least 1.
    pub q_length: [u32; MAX_MEMBERS],
}

/// attention.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct AttentionParams {
    /// Page geometry.
    pub page: PageParams,
    /// Row capacity per member.
    pub cap: u32,
    /// Query heads.
    pub n_heads: u32,
    /// Key and value heads.
    pub n_kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Factor of the dot products.
    pub scale: f32,
    /// `c * tanh(s / c)` on the scores. 0: off.
    pub softcap: f32,
    /// Keys seen, per member: positions above `position - window`. 0: all.
    pub window: [u32; MAX_MEMBERS],
}

/// matmul_add: `x += scale * (W y (+ bias))`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct MatmulAddParams {
    /// Row capacity of x and y per member.
    pub cap: u32,
    /// Columns of W, width of y.
    pub n_in: u32,
    /// Rows of W, width of x.
    pub n_out: u32,
    /// Factor of what is added. 1: none.
    pub scale: f32,
}

/// norm_add: `x += rms_norm(y) * gain`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct NormAddParams {
    /// Row capacity per member.
    pub cap: u32,
    /// Width of x and y.
    pub d_model: u32,
    /// eps per member.
    pub eps: [f32; MAX_MEMBERS],
}

/// norm_gate_up: `h = act(Wg n) * (Wu n)`, `n = rms_norm(x) * gain`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct NormGateUpParams {
    /// Row capacity per member.
    pub cap: u32,
    /// Columns of both matrices, width of x.
    pub n_in: u32,
    /// Rows of each matrix, width of h.
    pub n_out: u32,
    /// An [`crate::backend::Activation`] as its number.
    pub activation: u32,
    /// eps per member.
    pub eps: [f32; MAX_MEMBERS],
}

/// combine_sample.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct CombineSampleParams {
    /// 1 + the highest live id: columns at or past it are never read.
    pub n_ids: u32,
    /// Elements from one row to the next in base, expert and anti-expert logits.
    pub strides: [u32; 3],
    /// Words of one bitmask in the constraints buffer: `n_ids` bits, rounded up.
    pub mask_words: u32,
    /// 1: `counts` has a row per slot; 0: no slot of this engine is penalised.
    pub has_counts: u32,
    /// Padding.
    pub reserved: [u32; 2],
}

/// record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct RecordParams {
    /// 1 + the highest live id.
    pub n_ids: u32,
    /// Elements from one row to the next in base, expert and anti-expert logits.
    pub strides: [u32; 3],
    /// Words of one bitmask in the constraints buffer.
    pub mask_words: u32,
    /// Top entries wanted, at most [`MAX_RECORD_TOP`].
    pub n_top: u32,
    /// Padding.
    pub reserved: [u32; 2],
}

/// Words of the constraints buffer for `n_slots` slots and masks of `mask_words` words.
///
/// Layout, in words: live ids `[mask_words]`, ids whose difference is not used `[mask_words]`, then per slot
/// allowed `[mask_words]`, allowed at the first position `[mask_words]`, biases `[MAX_BIASES][id, bits of the f32]`.
pub fn constraints_words(n_slots: usize, mask_words: usize) -> usize {
    slot_constraints_offset(n_slots, mask_words)
}

/// First word of a slot's part of the constraints buffer.
pub fn slot_constraints_offset(slot: usize, mask_words: usize) -> usize {
    2 * mask_words + slot * (2 * mask_words + 2 * MAX_BIASES)
}
