//! The device side of a trio: its stacks, its buffers, and how a batch becomes one submitted step.

use super::batch::{Batch, Seat, StackRows};
use super::plan::{Plan, Room, StackPlan};
use super::request::Draft;
use super::scheduler::{Growth, Sizes};
use crate::Result;
use crate::backend::params::*;
use crate::backend::*;
use crate::checkpoint::Checkpoint;
use crate::model::graph::{Cache, Workspace, forward};
use crate::model::weights::Stack;
use crate::text::vocabulary::Vocabulary;

/// Sizes of a machine. Slots and pages are upper bounds: the device's limits may give fewer.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    /// Sequences at a time, at most [`MAX_SLOTS`].
    pub n_slots: usize,
    /// Longest lane: prompt and response.
    pub max_lane_tokens: usize,
    /// Type of keys and values; absent: each checkpoint's own.
    pub kv_cache_dtype: Option<Dtype>,
    /// Prompt rows per member and step, where the device's limits allow it; decode rows come on top.
    pub prefill_rows: usize,
    /// Some request uses penalties.
    pub penalties: bool,
    /// Top entries per record; absent: no step is recorded.
    pub record_top: Option<usize>,
    /// Tokens of all sequences together that the KV cache has room for, at least one longest lane; absent: as many as
    /// all slots can have.
    pub kv_tokens: Option<usize>,
    /// Bytes of the KV cache, in place of what `kv_tokens` need.
    pub kv_cache_bytes: Option<u64>,
    /// Share of the free memory that may be used.
    pub memory_utilization: f32,
}

/// Three models, one pool, one step at a time.
pub struct Machine<B: Backend> {
    backend: B,
    stacks: Vec<Stack<B>>,
    works: Vec<Workspace<B>>,
    page_params: Vec<PageParams>,
    seats: [Seat; 3],
    cache: Cache<B>,
    scores: B::Buf,
    counts: B::Buf,
    samples: B::Buf,
    copies: B::Buf,
    constraints: B::Buf,
    records: B::Buf,
    combine: CombineSampleParams,
    record_top: Option<u32>,
    /// What each slot asks for since its last admission.
    choices: Vec<Choice>,
    n_slots: usize,
    n_pages: usize,
    is_whole: bool,
    uploaded: Batch,
}

/// What a collected step shows.
pub struct StepView {
    /// Every slot after the step.
    pub slots: Vec<Slot>,
    /// Every slot's record, where the step was recorded.
    pub records: Vec<StepRecord>,
}

/// A step under way.
pub struct Step<R> {
    receipt: R,
    records: Records,
}

/// Whether a step makes a record of what it combines.
#[derive(Clone, Copy, PartialEq)]
pub enum Records {
    /// It does, for every slot.
    Kept,
    /// It does not.
    None,
}

/// The position that a mask holds for.
pub enum Draw {
    /// The first of a response.
    First,
    /// Every one after it.
    Later,
}

impl<B: Backend> Machine<B> {
    /// Loads the weights: `checkpoints` are the distinct ones, `member_of_role` says which a role uses.
    pub fn load(
        backend: B,
        checkpoints: &[&Checkpoint],
        member_of_role: [usize; 3],
        vocabulary: &Vocabulary,
        options: &MachineOptions,
    ) -> Result<Self> {
        let room = Room::of(&backend, options.memory_utilization);
        let plan = Plan::within_room(checkpoints, member_of_role, vocabulary.n_ids, options, &room)?;
        let load = |stack: &StackPlan| {
            let members: Vec<&Checkpoint> = stack.members.iter().map(|&i| checkpoints[i]).collect();
            Stack::load(&backend, &members, options.max_lane_tokens)
        };
        let stacks = plan.stacks.iter().map(load).collect::<Result<Vec<_>>>()?;
        checkpoints.iter().try_for_each(|checkpoint| checkpoint.check_unchanged())?;
        Self::allocate(backend, stacks, plan, vocabulary, options)
    }

    fn allocate(
        backend: B,
        stacks: Vec<Stack<B>>,
        plan: Plan,
        vocabulary: &Vocabulary,
        options: &MachineOptions,
    ) -> Result<Self> {
        let Plan { seats, n_slots, mask_words, slot_words: ref words, .. } = plan;
        let works = stacks.iter().zip(&plan.stacks);
        let works = works.map(|(stack, sizes)| Workspace::new(&backend, stack, sizes.cap, plan.cap_logits));
        let works = works.collect::<Result<Vec<_>>>()?;
        let page_params: Vec<PageParams> = plan.stacks.iter().map(|stack| stack.page).collect();
        let slots = backend.alloc("slots", words.slots)?;
        let page_table = backend.alloc("page table", words.page_table)?;
        let constraints = backend.alloc("constraints", words.constraints)?;
        let mut zero_delta = vec![0u32; mask_words];
        vocabulary.zero_delta_ids.iter().for_each(|&id| zero_delta[id as usize / 32] |= 1 << (id % 32));
        backend.upload(&constraints, 0, bytemuck::cast_slice(&vocabulary.live))?;
        backend.upload(&constraints, 4 * mask_words, bytemuck::cast_slice(&zero_delta))?;
        let scores = backend.alloc("scores", words.scores)?;
        let counts = backend.alloc("counts", words.counts)?;
        let samples = backend.alloc("samples", words.samples)?;
        let copies = backend.alloc("page copies", words.copies)?;
        let records = backend.alloc("records", words.records)?;
        // Last, because the pool takes what is left.
        let (n_pages, planes) = pool(&backend, &plan)?;
        Ok(Self {
            scores,
            counts,
            samples,
            copies,
            constraints,
            records,
            combine: CombineSampleParams {
                n_ids: vocabulary.n_ids as u32,
                strides: seats.map(|seat| stacks[seat.stack].n_vocab as u32),
                mask_words: mask_words as u32,
                has_counts: options.penalties.into(),
                reserved: [0; 2],
            },
            record_top: options.record_top.map(|top| top as u32),
            page_params,
            uploaded: Batch::new(stacks.len()),
            backend,
            stacks,
            works,
            seats,
            cache: Cache { slots, page_table, planes },
            is_whole: n_slots == options.n_slots.min(MAX_SLOTS) && n_pages >= plan.pages_wanted,
            choices: vec![Choice::Greedy; n_slots],
            n_slots,
            n_pages,
        })
    }

    /// Sequences at a time.
    pub fn n_slots(&self) -> usize {
        self.n_slots
    }

    /// Pages in the pool.
    pub fn n_pages(&self) -> usize {
        self.n_pages
    }

    /// Whether slots and pages are as many as were asked for.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Stacks, in the order of a batch's.
    pub fn n_stacks(&self) -> usize {
        self.stacks.len()
    }

    /// Where each role's weights are.
    pub fn seats(&self) -> [Seat; 3] {
        self.seats
    }

    /// Top entries per record; none where no step can be recorded.
    pub fn record_top(&self) -> Option<usize> {
        self.record_top.map(|top| top as usize)
    }

    /// Whether there is room for the counts of penalties.
    pub fn penalises(&self) -> bool {
        self.combine.has_counts == 1
    }

    /// Tokens of a lane at `seat` in a page.
    pub fn page_tokens(&self, seat: Seat) -> usize {
        self.page_params[seat.stack].page_tokens as usize
    }

    /// What a scheduler has to know of it, if `max_waiting` requests may wait.
    pub fn sizes(&self, max_waiting: usize) -> Sizes {
        Sizes {
            n_slots: self.n_slots,
            n_pages: self.n_pages,
            page_tokens: self.page_params.iter().map(|page| page.page_tokens as usize).collect(),
            prefill_rows: self.works.iter().map(|work| work.cap - work.cap_logits).collect(),
            lag: B::LAG,
            max_waiting,
        }
    }

    /// Writes a slot, its biases and its penalty counts: of the prompt, and of the ids `drawn` before.
    pub fn admit(&mut self, index: usize, slot: &Slot, request: &Draft, drawn: &[u32]) -> Result<()> {
        self.choices[index] = slot.choice();
        let mut biases = request.sampling.logit_bias.clone();
        biases.sort_unstable_by_key(|&(id, _)| id);
        let words: Vec<u32> = biases.iter().flat_map(|&(id, bias)| [id, bias.to_bits()]).collect();
        let mask_words = self.combine.mask_words as usize;
        let first = slot_constraints_offset(index, mask_words) + 2 * mask_words;
        self.backend.upload(&self.constraints, 4 * first, bytemuck::cast_slice(&words))?;
        if slot.penalised == 1 {
            let mut counts = vec![0u32; 32 * mask_words];
            for &id in &request.prompts[request.mode.main_role()] {
                if let Some(count) = counts.get_mut(id as usize) {
                    *count = 1 << 31;
                }
            }
            // All below the highest live id.
            drawn.iter().for_each(|&id| counts[id as usize] += 1);
            self.backend.upload(&self.counts, 4 * index * counts.len(), bytemuck::cast_slice(&counts))?;
        }
        self.backend.upload(&self.cache.slots, index * size_of::<Slot>(), bytemuck::bytes_of(slot))
    }

    /// Writes entries of a lane's page table.
    pub fn grow(&self, growth: &Growth) -> Result<()> {
        let Growth { slot, lane, first, pages } = growth;
        let max_pages = self.page_params[0].max_pages as usize;
        assert!(first + pages.len() <= max_pages, "a lane of {} pages", first + pages.len());
        let entry = (slot * N_LANES + lane) * max_pages + first;
        self.backend.upload(&self.cache.page_table, 4 * entry, bytemuck::cast_slice(pages))
    }

    /// Fills pages with NaN in every layer: what no live token wrote must not matter. For tests.
    pub fn poison(&self, pages: &[u32]) -> Result<()> {
        let page_words = self.page_params[0].page_words as usize;
        let nan = vec![u32::MAX; page_words];
        for (plane, &page) in self.cache.planes.iter().flat_map(|plane| pages.iter().map(move |page| (plane, page))) {
            self.backend.upload(plane, 4 * page_words * page as usize, bytemuck::cast_slice(&nan))?;
        }
        Ok(())
    }

    /// Writes which ids a slot may draw.
    pub fn allow(&self, index: usize, mask: &[u32], at: Draw) -> Result<()> {
        let mask_words = self.combine.mask_words as usize;
        assert_eq!(mask.len(), mask_words);
        let offset = slot_constraints_offset(index, mask_words)
            + match at {
                Draw::First => mask_words,
                Draw::Later => 0,
            };
        self.backend.upload(&self.constraints, 4 * offset, bytemuck::cast_slice(mask))
    }

    /// Ends a slot: steps submitted later leave it alone.
    pub fn cancel(&self, index: usize) -> Result<()> {
        let offset = index * size_of::<Slot>() + std::mem::offset_of!(Slot, finish);
        self.backend.upload(&self.cache.slots, offset, bytemuck::bytes_of(&(Finish::Cancelled as u32)))
    }

    /// Submits one step: pages are copied in every layer, then the batch runs.
    pub fn submit(&mut self, batch: Batch, copies: &[PageCopy], records: Records) -> Result<Step<B::Receipt>> {
        self.upload(batch)?;
        let mut pass = self.backend.begin();
        self.copy_pages(&mut pass, copies)?;
        for ((stack, work), (&page, rows)) in
            self.stacks.iter().zip(&self.works).zip(self.page_params.iter().zip(&self.uploaded.stacks))
        {
            let bounds = [rows.n_rows() as u32, rows.n_logits() as u32];
            if bounds[0] > 0 {
                forward(&self.backend, &mut pass, stack, work, &self.cache, page, bounds);
            }
        }
        let n_samples = self.uploaded.samples.len() as u32;
        if n_samples > 0 {
            self.combine_sample(&mut pass, n_samples);
            if records == Records::Kept {
                self.record(&mut pass, n_samples);
            }
        }
        let slots = (&self.cache.slots, 0..self.n_slots * size_of::<Slot>());
        let kept = (&self.records, 0..self.n_slots * size_of::<StepRecord>());
        let receipt = match records {
            Records::Kept => self.backend.submit(pass, &[slots, kept])?,
            Records::None => self.backend.submit(pass, &[slots])?,
        };
        Ok(Step { receipt, records })
    }

    /// Waits for a step. Steps are collected in the order of their submission.
    pub fn collect(&self, step: Step<B::Receipt>) -> Result<StepView> {
        let bytes = self.backend.collect(step.receipt)?;
        let (slots, records) = bytes.split_at(self.n_slots * size_of::<Slot>());
        Ok(StepView {
            slots: bytemuck::pod_collect_to_vec(slots),
            records: if step.records == Records::Kept { bytemuck::pod_collect_to_vec(records) } else { Vec::new() },
        })
    }

    /// The logits row number `row` of a role's member, as the last collected step left it. For tests.
    pub fn logits(&self, role: usize, row: usize) -> Result<Vec<f32>> {
        let seat = self.seats[role];
        let (stack, work) = (&self.stacks[seat.stack], &self.works[seat.stack]);
        let bytes = 4 * stack.n_vocab;
        let first = (seat.member * work.cap_logits + row) * bytes;
        Ok(bytemuck::pod_collect_to_vec(&self.backend.read(&work.logits, first..first + bytes)?))
    }

    fn upload(&mut self, batch: Batch) -> Result<()> {
        let stacks = self.works.iter().zip(batch.stacks.iter().zip(&self.uploaded.stacks));
        for (work, (rows, before)) in stacks {
            if rows != before {
                upload_rows(&self.backend, work, rows)?;
            }
        }
        if batch.samples != self.uploaded.samples {
            let mut samples: Vec<_> = batch.samples.iter().map(|sample| self.to_buffer_rows(*sample)).collect();
            samples.resize(self.n_slots, Sample { slot: NO_SLOT, ..Sample::default() });
            self.backend.upload(&self.samples, 0, bytemuck::cast_slice(&samples))?;
        }
        self.uploaded = batch;
        Ok(())
    }

    /// A batch counts logits rows within a member; the logits buffer stacks the members.
    fn to_buffer_rows(&self, sample: Sample) -> Sample {
        let [base, expert, anti] = self.seats.map(|seat| (seat.member * self.works[seat.stack].cap_logits) as u32);
        Sample {
            slot: sample.slot,
            row_base: base + sample.row_base,
            row_expert: expert + sample.row_expert,
            row_anti: anti + sample.row_anti,
        }
    }

    fn logits_of(&self, role: usize) -> &B::Buf {
        &self.works[self.seats[role].stack].logits
    }

    fn copy_pages(&self, pass: &mut B::Pass, copies: &[PageCopy]) -> Result<()> {
        if copies.is_empty() {
            return Ok(());
        }
        let n_copies = copies.len();
        assert!(n_copies <= self.n_slots * N_LANES, "{n_copies} pages are copied in one step");
        checks::check_copies(copies, self.n_pages);
        self.backend.upload(&self.copies, 0, bytemuck::cast_slice(copies))?;
        let params = CopyPagesParams { page_words: self.page_params[0].page_words, reserved: [0; 3] };
        for plane in &self.cache.planes {
            let op = CopyPages { plane, copies: &self.copies, n_copies: n_copies as u32, params };
            self.backend.copy_pages(pass, op);
        }
        Ok(())
    }

    fn combine_sample(&self, pass: &mut B::Pass, n_samples: u32) {
        let choices = self.uploaded.samples.iter().map(|sample| self.choices[sample.slot as usize]);
        self.backend.combine_sample(
            pass,
            CombineSample {
                slots: &self.cache.slots,
                scores: &self.scores,
                counts: &self.counts,
                base: self.logits_of(0),
                expert: self.logits_of(1),
                anti: self.logits_of(2),
                samples: &self.samples,
                constraints: &self.constraints,
                n_samples,
                choice: choices.max().expect("a step of samples"),
                params: self.combine,
            },
        );
    }

    fn record(&self, pass: &mut B::Pass, n_samples: u32) {
        let CombineSampleParams { n_ids, strides, mask_words, .. } = self.combine;
        let n_top = self.record_top.expect("a machine that records has record buffers");
        self.backend.record(
            pass,
            Record {
                records: &self.records,
                slots: &self.cache.slots,
                scores: &self.scores,
                base: self.logits_of(0),
                expert: self.logits_of(1),
                anti: self.logits_of(2),
                samples: &self.samples,
                constraints: &self.constraints,
                n_samples,
                params: RecordParams { n_ids, strides, mask_words, n_top, reserved: [0; 2] },
            },
        );
    }
}

/// The planes of the pool, with as many of the planned pages as the device has memory for: half, or half of that, as
/// long as the longest sequence still fits; all of them where their number is fixed.
fn pool<B: Backend>(backend: &B, plan: &Plan) -> Result<(usize, Vec<B::Buf>)> {
    let page_words = plan.stacks[0].page.page_words as usize;
    let mut n_pages = plan.n_pages;
    loop {
        let planes = (0..plan.n_layers)
            .map(|_| checks::unowned(backend, "KV plane", n_pages * page_words))
            .collect::<Result<Vec<_>>>();
        match planes {
            Ok(planes) => return Ok((n_pages, planes)),
            Err(_) if !plan.pages_are_fixed && n_pages / 2 >= plan.pages_per_slot => n_pages /= 2,
            Err(error) => return Err(error),
        }
    }
}

fn upload_rows<B: Backend>(backend: &B, work: &Workspace<B>, stack: &StackRows) -> Result<()> {
    let mut extents = [Extent::default(); MAX_MEMBERS];
    for (member, (rows, gather)) in stack.rows.iter().zip(&stack.gather).enumerate() {
        extents[member] = Extent { n_rows: rows.len() as u32, n_logits: gather.len() as u32 };
        assert!(rows.len() <= work.cap && gather.len() <= work.cap_logits, "a batch fits its workspace");
        backend.upload(&work.rows, member * work.cap * size_of::<Row>(), bytemuck::cast_slice(rows))?;
        backend.upload(&work.gather, member * work.cap_logits * 4, bytemuck::cast_slice(gather))?;
    }
    backend.upload(&work.extents, 0, bytemuck::bytes_of(&extents))
}
