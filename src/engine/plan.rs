//! Sizes of a machine, from configurations and the device's limit alone: what cannot fit is refused here, before a weight
//! is read or a byte is allocated.

use super::batch::Seat;
use super::machine::MachineOptions;
use crate::backend::Dtype;
use crate::backend::params::{MAX_SLOTS, PageParams};
use crate::checkpoint::{Checkpoint, EMBEDDING};
use crate::kv::pool::{PageShape, page_bytes};
use crate::model::weights::LayerShape;
use crate::text::vocabulary::Vocabulary;
use crate::{Error, Result};

/// Most prompt rows per member and step: a row is a workgroup in some ops, and devices take 65,535 of them.
const MAX_PREFILL_ROWS: usize = 32_768;

/// Bytes of one model, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelBytes {
    /// All weights.
    pub weights: u64,
    /// Weights that a step reads, however many rows it has: all but the embedding of an untied model, of which it reads
    /// a few rows.
    pub read_per_step: u64,
    /// Keys and values of one token, all layers.
    pub kv_per_token: u64,
}

impl ModelBytes {
    /// The bytes of `checkpoint`, its keys and values stored as `kv_cache_dtype` or in its own type.
    pub fn of(checkpoint: &Checkpoint, kv_cache_dtype: Option<Dtype>) -> Self {
        let weights = checkpoint.tensors().map(|(_, tensor)| tensor.n_bytes as u64).sum();
        let embedding = checkpoint.tensor(EMBEDDING).map_or(0, |tensor| tensor.n_bytes as u64);
        let dtype = kv_cache_dtype.unwrap_or_else(|| stored_dtype(checkpoint));
        Self {
            weights,
            read_per_step: weights - if checkpoint.config.tied { 0 } else { embedding },
            kv_per_token: (checkpoint.config.n_layers * page_shape(checkpoint, dtype).token_bytes()) as u64,
        }
    }
}

/// One launch's weights.
pub(super) struct StackPlan {
    /// Indices of its checkpoints.
    pub(super) members: Vec<usize>,
    /// How its keys and values fill pages.
    pub(super) page: PageParams,
    /// Rows per member and step.
    pub(super) cap: usize,
}

/// How large everything becomes.
pub(super) struct Plan {
    pub(super) stacks: Vec<StackPlan>,
    /// Where each role's weights are.
    pub(super) seats: [Seat; 3],
    pub(super) n_layers: usize,
    pub(super) n_slots: usize,
    pub(super) n_pages: usize,
    /// Pages that the longest sequence takes.
    pub(super) pages_per_slot: usize,
    /// Logits rows per member and step.
    pub(super) cap_logits: usize,
    /// Words of one bitmask over ids.
    pub(super) mask_words: usize,
}

impl Plan {
    /// `checkpoints` are the distinct ones, `member_of_role` says which a role uses; an op binds at most `limit` bytes.
    pub(super) fn new(
        checkpoints: &[&Checkpoint],
        member_of_role: [usize; 3],
        vocabulary: &Vocabulary,
        options: &MachineOptions,
        limit: u64,
    ) -> Result<Self> {
        let kv_dtype = |index: usize| options.kv_cache_dtype.unwrap_or_else(|| stored_dtype(checkpoints[index]));
        let groups = twins(checkpoints, member_of_role, kv_dtype);
        let seats = member_of_role.map(|checkpoint| seat_of(&groups, checkpoint));
        let rows_per_slot = rows_per_slot(seats);
        let shape = |group: &Vec<usize>| LayerShape::of(&checkpoints[group[0]].config);
        let n_vocab = |group: &Vec<usize>| group.iter().map(|&i| checkpoints[i].config.n_vocab).max().unwrap_or(0);
        for group in &groups {
            let bytes = 4 * group.len() * options.max_lane_tokens * shape(group).head_dim;
            fits("rotary table", bytes as u64, limit)?;
        }

        let mask_words = vocabulary.live.len();
        let logits_bytes = |group: &Vec<usize>| 4 * group.len() * rows_per_slot * n_vocab(group);
        let scores_bytes = 2 * 4 * 32 * mask_words;
        let slot_bytes = groups.iter().map(logits_bytes).fold(scores_bytes, usize::max) as u64;
        fits("logits of one sequence", slot_bytes, limit)?;
        let n_slots = options.n_slots.min(MAX_SLOTS).min((limit / slot_bytes) as usize);

        let page_shape = |group: &Vec<usize>| page_shape(checkpoints[group[0]], kv_dtype(group[0]));
        let page_shapes: Vec<PageShape> = groups.iter().map(page_shape).collect();
        let page_bytes = page_bytes(&page_shapes);
        let lane_pages = |seat: Seat| options.max_lane_tokens.div_ceil(page_shapes[seat.stack].page_tokens(page_bytes));
        let pages_per_slot: usize = seats.map(lane_pages).iter().sum();
        fits("KV cache of one sequence, per layer", (pages_per_slot * page_bytes) as u64, limit)?;
        let max_pages = seats.map(lane_pages).into_iter().max().unwrap_or(0);

        let cap_logits = n_slots * rows_per_slot;
        // A prompt moves on only if each of a slot's lanes at a member gets a row.
        let rows_wanted = cap_logits + options.prefill_rows.clamp(rows_per_slot, MAX_PREFILL_ROWS);
        let stack = |(group, page_shape): (&Vec<usize>, &PageShape)| {
            let row_bytes = 4 * group.len() * shape(group).row_words();
            fits("activations of one step", ((cap_logits + rows_per_slot) * row_bytes) as u64, limit)?;
            let page = PageParams {
                page_words: page_bytes as u32 / 4,
                page_tokens: page_shape.page_tokens(page_bytes) as u32,
                dtype: page_shape.dtype as u32,
                max_pages: max_pages as u32,
            };
            Ok(StackPlan { members: group.clone(), page, cap: rows_wanted.min(limit as usize / row_bytes) })
        };
        Ok(Self {
            stacks: groups.iter().zip(&page_shapes).map(stack).collect::<Result<_>>()?,
            seats,
            n_layers: groups.iter().map(|group| shape(group).n_layers).max().unwrap_or(0),
            n_slots,
            n_pages: (n_slots * pages_per_slot).min((limit / page_bytes as u64) as usize),
            pages_per_slot,
            cap_logits,
            mask_words,
        })
    }
}

/// Checkpoints grouped into stacks: expert and anti-expert together where their layers have equal shapes, their keys
/// and values one type, and neither is the base.
fn twins(
    checkpoints: &[&Checkpoint],
    [base, expert, anti]: [usize; 3],
    kv_dtype: impl Fn(usize) -> Dtype,
) -> Vec<Vec<usize>> {
    let twin = expert != anti
        && expert != base
        && anti != base
        && LayerShape::of(&checkpoints[expert].config) == LayerShape::of(&checkpoints[anti].config)
        && kv_dtype(expert) == kv_dtype(anti);
    if twin { vec![vec![base], vec![expert, anti]] } else { (0..checkpoints.len()).map(|i| vec![i]).collect() }
}

fn seat_of(groups: &[Vec<usize>], checkpoint: usize) -> Seat {
    let find = |(stack, group): (usize, &Vec<usize>)| {
        group.iter().position(|&c| c == checkpoint).map(|member| Seat { stack, member })
    };
    groups.iter().enumerate().find_map(find).expect("every checkpoint has a seat")
}

/// Rows of one slot that one member may have to compute in a decode step: the roles that share it.
fn rows_per_slot(seats: [Seat; 3]) -> usize {
    seats.iter().map(|seat| seats.iter().filter(|other| *other == seat).count()).max().unwrap_or(1)
}

fn page_shape(checkpoint: &Checkpoint, dtype: Dtype) -> PageShape {
    PageShape { n_kv_heads: checkpoint.config.n_kv_heads, head_dim: checkpoint.config.head_dim, dtype }
}

/// The type of a checkpoint: its embedding's.
fn stored_dtype(checkpoint: &Checkpoint) -> Dtype {
    checkpoint.tensor(EMBEDDING).map_or(Dtype::F32, |tensor| tensor.dtype)
}

fn fits(what: &str, needed: u64, limit: u64) -> Result<()> {
    if needed <= limit { Ok(()) } else { Err(Error::Memory { what: what.into(), needed, limit }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Source;

    #[test]
    fn a_pair_is_stacked_where_shapes_and_cache_types_agree() {
        let open = |role: &str| {
            let directory = format!("{}/tests/golden/llama/{role}", env!("CARGO_MANIFEST_DIR"));
            Checkpoint::open(Source::directory(directory)).expect("a golden checkpoint opens")
        };
        let checkpoints = ["base", "expert", "anti-expert"].map(open);
        let checkpoints = checkpoints.each_ref();
        assert_eq!(twins(&checkpoints, [0, 1, 2], |_| Dtype::F32), [vec![0], vec![1, 2]]);
        let differing = |index| if index == 1 { Dtype::Bf16 } else { Dtype::F16 };
        assert_eq!(twins(&checkpoints, [0, 1, 2], differing), [[0], [1], [2]]);
        assert_eq!(twins(&checkpoints[..2], [0, 1, 1], |_| Dtype::F32), [[0], [1]]);
    }
}
