//! Sizes of a machine, from configurations and the device's limits alone: what cannot fit is refused here, before a weight
//! is read or a byte is allocated. `proxytune plan` shows them.

use super::batch::Seat;
use super::machine::MachineOptions;
use super::options::EngineOptions;
use crate::backend::params::{MAX_SLOTS, N_LANES, PageCopy, PageParams, Sample, Slot, StepRecord, constraints_words};
use crate::backend::{Backend, Dtype};
use crate::checkpoint::{Checkpoint, EMBEDDING};
use crate::kv::page::{PageShape, page_bytes};
use crate::model::graph::{self, WorkspaceWords};
use crate::model::weights::{LayerShape, RotarySets};
use crate::{Error, Result};
use serde::Serialize;

/// Bytes of keys and values at most where a device does not tell how much memory it has and nobody else does.
const UNTOLD_KV_BYTES: u64 = 2 << 30;

/// Most prompt rows per member and step: a row is a workgroup in some ops, and devices take 65,535 of them.
pub const MAX_PREFILL_ROWS: usize = 32_768;

/// Bytes of one model, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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

/// What a device has room for.
#[derive(Clone, Debug)]
pub struct Room {
    /// The backend and the device.
    pub device: String,
    /// Bytes that an op can bind.
    pub binding_limit: u64,
    /// Bytes that may be used; absent where the device does not tell how much it has.
    pub memory: Option<u64>,
}

impl Room {
    /// The room on `backend`, of whose free memory `fraction` may be used.
    pub(super) fn of<B: Backend>(backend: &B, fraction: f32) -> Self {
        let share = |bytes: u64| (bytes as f64 * f64::from(fraction)) as u64;
        let (device, binding_limit) = (backend.describe(), backend.binding_limit());
        Self { device, binding_limit, memory: backend.free_memory().map(share) }
    }
}

/// Bytes of a whole machine, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MachineBytes {
    /// Weights of the distinct models, as stored.
    pub weights: u64,
    /// Activations, logits and rotary tables, and what every slot has: scores, counts, constraints, records, page tables.
    pub workspace: u64,
    /// Keys and values.
    pub kv_cache: u64,
}

impl MachineBytes {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.workspace + self.kv_cache
    }
}

/// What a machine with all that was asked for comes to.
pub struct MachineSizes {
    /// Its bytes.
    pub bytes: MachineBytes,
    /// Bytes of keys and values for all that was asked for; the cache may have fewer.
    pub kv_wanted: u64,
    /// Prompt rows per member and step; the device may allow fewer than were asked for.
    pub prefill_rows: usize,
}

impl MachineSizes {
    /// An error where `what` was asked for and does not fit: in the KV cache, or all of it in `memory`.
    pub fn check(&self, what: &str, memory: Option<u64>) -> Result<()> {
        let (needed, limit) = (self.kv_wanted, self.bytes.kv_cache);
        if needed > limit {
            let what = format!("KV cache of {what} (kv_cache_memory_bytes sets the limit)");
            return Err(Error::Memory { what, needed, limit });
        }
        match memory {
            Some(memory) if self.bytes.total() > memory => Err(too_little(self.bytes, what, memory)),
            _ => Ok(()),
        }
    }
}

/// The sizes of a machine for `checkpoints` (the distinct ones; `member_of_role` says which a role uses) with room for
/// all that `options` ask for. An error where that needs a buffer that the device of `room` cannot bind.
pub fn machine_sizes(
    checkpoints: &[&Checkpoint],
    member_of_role: [usize; 3],
    options: &EngineOptions,
    room: &Room,
) -> Result<MachineSizes> {
    // At most as many ids as every model has columns.
    let n_ids = checkpoints.iter().map(|checkpoint| checkpoint.config.n_vocab).min().unwrap_or(0);
    let limit = room.binding_limit;
    let plan = Plan::new(checkpoints, member_of_role, n_ids, &options.machine(), room)?;
    let wanted = options.n_slots.min(MAX_SLOTS);
    fits("logits of all texts at a time", wanted as u64 * plan.slot_bytes, limit)?;
    fits("KV cache of all texts, per layer", (plan.pages_wanted * plan.page_bytes()) as u64, limit)?;
    let kv_wanted = (plan.pages_wanted * plan.n_layers * plan.page_bytes()) as u64;
    Ok(MachineSizes { bytes: plan.bytes, kv_wanted, prefill_rows: plan.prefill_rows() })
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

/// Sizes of the buffers that have a part per slot, logits aside, in 32-bit words.
pub(super) struct SlotWords {
    pub(super) slots: usize,
    pub(super) page_table: usize,
    pub(super) constraints: usize,
    pub(super) scores: usize,
    /// One where nothing is penalised.
    pub(super) counts: usize,
    pub(super) samples: usize,
    /// A lane copies one page at most: the partial last one of a prompt.
    pub(super) copies: usize,
    /// One where nothing is recorded.
    pub(super) records: usize,
}

impl SlotWords {
    fn new(n_slots: usize, mask_words: usize, max_pages: usize, options: &MachineOptions) -> Self {
        Self {
            slots: n_slots * size_of::<Slot>() / 4,
            page_table: n_slots * N_LANES * max_pages,
            constraints: constraints_words(n_slots, mask_words),
            scores: n_slots * 2 * 32 * mask_words,
            counts: if options.penalties { n_slots * 32 * mask_words } else { 1 },
            samples: n_slots * size_of::<Sample>() / 4,
            copies: n_slots * N_LANES * size_of::<PageCopy>() / 4,
            records: if options.record_top.is_some() { n_slots * size_of::<StepRecord>() / 4 } else { 1 },
        }
    }

    /// Words of all of them.
    fn total(&self) -> usize {
        let Self { slots, page_table, constraints, scores, counts, samples, copies, records } = self;
        slots + page_table + constraints + scores + counts + samples + copies + records
    }
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
    /// Sizes of the buffers that have a part per slot.
    pub(super) slot_words: SlotWords,
    /// Pages for all that was asked for; `n_pages` may be fewer.
    pub(super) pages_wanted: usize,
    /// Whether `n_pages` is what somebody said, and not to be changed.
    pub(super) pages_are_fixed: bool,
    /// Bytes of a slot in the largest buffer that has a part per slot.
    slot_bytes: u64,
    /// Bytes of it all.
    bytes: MachineBytes,
}

impl Plan {
    /// `checkpoints` are the distinct ones, `member_of_role` says which a role uses; ids below `n_ids` may be sampled. Of
    /// `room`, how much memory there is does not count yet, only whether that is known.
    pub(super) fn new(
        checkpoints: &[&Checkpoint],
        member_of_role: [usize; 3],
        n_ids: usize,
        options: &MachineOptions,
        room: &Room,
    ) -> Result<Self> {
        let limit = room.binding_limit;
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

        let mask_words = n_ids.div_ceil(32);
        let logits_bytes = |group: &Vec<usize>| 4 * group.len() * rows_per_slot * n_vocab(group);
        let scores_bytes = 2 * 4 * 32 * mask_words;
        let slot_bytes = groups.iter().map(logits_bytes).fold(scores_bytes, usize::max) as u64;
        fits("logits of one sequence", slot_bytes, limit)?;
        let n_slots = options.n_slots.min(MAX_SLOTS).min((limit / slot_bytes) as usize);

        let page_shape = |group: &Vec<usize>| page_shape(checkpoints[group[0]], kv_dtype(group[0]));
        let page_shapes: Vec<PageShape> = groups.iter().map(page_shape).collect();
        let page_bytes = page_bytes(&page_shapes);
        let pages_of = |seat: Seat, tokens: usize| tokens.div_ceil(page_shapes[seat.stack].page_tokens(page_bytes));
        let lane_pages = |seat| pages_of(seat, options.max_lane_tokens);
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
        let stacks = groups.iter().zip(&page_shapes).map(stack).collect::<Result<Vec<_>>>()?;
        let pages_wanted = match options.kv_tokens {
            // A text's last page of each lane may be almost empty.
            Some(tokens) => {
                seats.map(|seat| pages_of(seat, tokens) + n_slots).iter().sum::<usize>().max(pages_per_slot)
            }
            None => n_slots * pages_per_slot,
        };
        let n_layers = groups.iter().map(|group| shape(group).n_layers).max().unwrap_or(0);
        let pages_in = |bytes: u64| (bytes / (n_layers * page_bytes) as u64) as usize;
        let all_layers = |n_pages: usize| (n_pages * n_layers * page_bytes) as u64;
        let n_pages = match (options.kv_cache_bytes, room.memory) {
            (Some(bytes), _) => {
                fits("KV cache (kv_cache_memory_bytes), per layer", bytes / n_layers as u64, limit)?;
                pages_in(bytes)
            }
            (None, None) => pages_wanted.min(pages_in(UNTOLD_KV_BYTES)).min((limit / page_bytes as u64) as usize),
            (None, Some(_)) => pages_wanted.min((limit / page_bytes as u64) as usize),
        };
        if n_pages < pages_per_slot {
            let what = "KV cache of the longest text (kv_cache_memory_bytes sets the limit)".into();
            return Err(Error::Memory { what, needed: all_layers(pages_per_slot), limit: all_layers(n_pages) });
        }
        let slot_words = SlotWords::new(n_slots, mask_words, max_pages, options);
        let words = |(group, stack): (&Vec<usize>, &StackPlan)| {
            let members: Vec<&Checkpoint> = group.iter().map(|&index| checkpoints[index]).collect();
            let rotary = RotarySets::of(&members).words(options.max_lane_tokens, shape(group).head_dim);
            let room = graph::Room { n_members: group.len(), n_vocab: n_vocab(group), cap: stack.cap, cap_logits };
            rotary + WorkspaceWords::new(&shape(group), room).total()
        };
        let words: usize = groups.iter().zip(&stacks).map(words).sum();
        Ok(Self {
            stacks,
            seats,
            n_layers,
            n_slots,
            n_pages,
            pages_per_slot,
            cap_logits,
            mask_words,
            pages_wanted,
            pages_are_fixed: options.kv_cache_bytes.is_some(),
            slot_bytes,
            bytes: MachineBytes {
                workspace: 4 * (words + slot_words.total()) as u64,
                weights: checkpoints.iter().map(|checkpoint| checkpoint.n_bytes()).sum(),
                kv_cache: all_layers(n_pages),
            },
            slot_words,
        })
    }

    /// As [`Self::new`], within the memory of `room`: as many slots as leave the longest text its pages, and as many
    /// pages as there is memory for. An error where one slot is too many.
    pub(super) fn within_room(
        checkpoints: &[&Checkpoint],
        member_of_role: [usize; 3],
        n_ids: usize,
        options: &MachineOptions,
        room: &Room,
    ) -> Result<Self> {
        let mut options = options.clone();
        loop {
            let plan = Self::new(checkpoints, member_of_role, n_ids, &options, room)?;
            let n_slots = plan.n_slots;
            match plan.within(room.memory) {
                Err(_) if n_slots > 1 => options.n_slots = n_slots - 1,
                result => return result,
            }
        }
    }

    /// As many pages as `memory` bytes leave room for; an error where the longest text, or the size that was set, does
    /// not fit.
    fn within(mut self, memory: Option<u64>) -> Result<Self> {
        let Some(memory) = memory else { return Ok(self) };
        let all_layers = (self.n_layers * self.page_bytes()) as u64;
        let MachineBytes { weights, workspace, .. } = self.bytes;
        let left = (memory.saturating_sub(weights + workspace) / all_layers) as usize;
        let (least, what) = match self.pages_are_fixed {
            true => (self.n_pages, "kv_cache_memory_bytes"),
            false => (self.pages_per_slot, "the longest text"),
        };
        if left < least {
            let kv_cache = least as u64 * all_layers;
            return Err(too_little(MachineBytes { kv_cache, ..self.bytes }, what, memory));
        }
        self.n_pages = self.n_pages.min(left);
        Ok(self)
    }

    /// Prompt rows that every member takes in a step, beside all decode rows.
    fn prefill_rows(&self) -> usize {
        self.stacks.iter().map(|stack| stack.cap - self.cap_logits).min().unwrap_or(0)
    }

    fn page_bytes(&self) -> usize {
        4 * self.stacks[0].page.page_words as usize
    }
}

/// Says how much memory the parts of a machine take, `what` being what the cache is for.
fn too_little(bytes: MachineBytes, what: &str, memory: u64) -> Error {
    let MachineBytes { weights, workspace, kv_cache } = bytes;
    let what = format!("memory for weights ({weights}), workspace ({workspace}) and KV cache of {what} ({kv_cache})");
    Error::Memory { what, needed: bytes.total(), limit: memory }
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
    fn where_memory_is_short_fewer_slots_run() {
        let open = |role| Checkpoint::open(Source::directory(format!("{}/demo/{role}", env!("CARGO_MANIFEST_DIR"))));
        let checkpoints = ["base", "expert", "anti-expert"].map(|role| open(role).expect("a demo checkpoint opens"));
        let checkpoints = checkpoints.each_ref();
        let options = EngineOptions { n_slots: 64, max_model_len: 32, ..EngineOptions::default() }.machine();
        let room = |memory| Room { device: String::new(), binding_limit: u64::MAX >> 1, memory };
        let within = |memory| Plan::within_room(&checkpoints, [0, 1, 2], 1_000, &options, &room(Some(memory)));
        let new = |n_slots| {
            let options = MachineOptions { n_slots, ..options.clone() };
            Plan::new(&checkpoints, [0, 1, 2], 1_000, &options, &room(Some(0))).expect("a plan")
        };
        // Just what so many slots need with the pages of one text; a byte less is a slot less.
        let least = |n_slots| {
            let plan = new(n_slots);
            let pages = plan.n_layers * plan.pages_per_slot * plan.page_bytes();
            plan.bytes.weights + plan.bytes.workspace + pages as u64
        };
        for n_slots in [64, 5, 2] {
            let [enough, less] = [least(n_slots), least(n_slots) - 1].map(|memory| within(memory).expect("it fits"));
            assert_eq!([enough.n_slots, less.n_slots], [n_slots, n_slots - 1]);
            assert_eq!(enough.n_pages, enough.pages_per_slot);
        }
        assert!(matches!(within(least(1) - 1), Err(Error::Memory { .. })));
    }

    #[test]
    fn the_pool_is_as_large_as_it_may_be_or_as_was_said() {
        let open = |role| Checkpoint::open(Source::directory(format!("{}/demo/{role}", env!("CARGO_MANIFEST_DIR"))));
        let checkpoints = ["base", "expert", "anti-expert"].map(|role| open(role).expect("a demo checkpoint opens"));
        let checkpoints = checkpoints.each_ref();
        let planned = |n_slots, kv_cache_bytes, (binding_limit, memory)| {
            let options = EngineOptions { n_slots, max_model_len: 256, kv_cache_bytes, ..EngineOptions::default() };
            let room = Room { device: String::new(), binding_limit, memory };
            Plan::within_room(&checkpoints, [0, 1, 2], 1_000, &options.machine(), &room)
        };
        let (unbound, plenty) = (u64::MAX >> 1, Some(1 << 40));
        let of_slots = planned(64, None, (unbound, plenty)).expect("it fits");
        assert_eq!(of_slots.n_pages, 64 * of_slots.pages_per_slot);
        // Unset, it is never more than the slots can use, and at most 2 GiB where nothing is known; no demo needs that.
        let page = (of_slots.n_layers * of_slots.page_bytes()) as u64;
        assert_eq!(planned(64, None, (unbound, None)).expect("it fits").n_pages, of_slots.n_pages);
        assert!(page * (of_slots.n_pages as u64) < UNTOLD_KV_BYTES);
        // Set, it is that, more or less than the slots can use, whole pages of it.
        for (memory, n_pages) in [plenty, None].into_iter().flat_map(|memory| [32, 100, 5_000].map(|n| (memory, n))) {
            let set = planned(4, Some(n_pages * page + page - 1), (unbound, memory)).expect("it fits");
            assert_eq!((set.n_pages as u64, set.n_slots, set.bytes.kv_cache), (n_pages, 4, n_pages * page));
        }
        let refused = |set, room| planned(1, Some(set), room).err().expect("it does not fit").to_string();
        let least = of_slots.pages_per_slot as u64 * page;
        assert!(refused(least - 1, (unbound, plenty)).contains(&format!("needs {least} bytes")));
        assert!(refused(1 << 50, (unbound, plenty)).contains("KV cache of kv_cache_memory_bytes"));
        assert!(refused(u64::MAX, (1 << 30, None)).contains("(kv_cache_memory_bytes), per layer"));
    }

    #[test]
    fn a_pair_is_stacked_where_shapes_and_cache_types_agree() {
        let open = |trio: &str| {
            let path = |role: &str| format!("{}/tests/golden/{trio}/{role}", env!("CARGO_MANIFEST_DIR"));
            let open = |role| Checkpoint::open(Source::directory(path(role))).expect("a golden checkpoint opens");
            ["base", "expert", "anti-expert"].map(open)
        };
        // Members may differ in windows, rotary positions and growth of q, but not in what a launch has one of.
        for (trio, stacked) in [
            ("qwen3", true),
            ("ministral3", true),
            ("smollm3", true),
            ("gemma3", true),
            ("granite", false),
            ("gemma2", false),
        ] {
            let checkpoints = open(trio);
            let groups = twins(&checkpoints.each_ref(), [0, 1, 2], |_| Dtype::F32);
            assert_eq!(groups.len(), if stacked { 2 } else { 3 }, "{trio}");
        }
        let checkpoints = open("llama");
        let checkpoints = checkpoints.each_ref();
        assert_eq!(twins(&checkpoints, [0, 1, 2], |_| Dtype::F32), [vec![0], vec![1, 2]]);
        let differing = |index| if index == 1 { Dtype::Bf16 } else { Dtype::F16 };
        assert_eq!(twins(&checkpoints, [0, 1, 2], differing), [[0], [1], [2]]);
        assert_eq!(twins(&checkpoints[..2], [0, 1, 1], |_| Dtype::F32), [[0], [1]]);
    }
}
