//! Every op on every backend: time per launch, bytes per second, and the share of the rate at which this machine reads
//! memory, measured in the same run. `cargo bench --bench kernels` runs all; `-- cpu` or `-- wgpu` one backend; further
//! words only the ops whose names begin with one of them: `-- cpu attention record`.
//!
//! The method, what the bytes are and a table are in benches/README.md.

use bytemuck::{Pod, Zeroable};
use proxytune::Result;
use proxytune::backend::cpu::{Cpu, ReadRate};
use proxytune::backend::params::*;
use proxytune::backend::wgpu::{Options, Wgpu};
use proxytune::backend::*;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Instant;

/// Layer shapes of known models.
#[derive(Clone, Copy)]
struct Model {
    name: &'static str,
    d_model: usize,
    n_heads: usize,
    n_kv_heads: usize,
    d_ff: usize,
    n_vocab: usize,
}

const MODELS: [Model; 2] = [
    Model { name: "Qwen2.5-0.5B", d_model: 896, n_heads: 14, n_kv_heads: 2, d_ff: 4864, n_vocab: 151_936 },
    Model { name: "SmolLM2-135M", d_model: 576, n_heads: 9, n_kv_heads: 3, d_ff: 1536, n_vocab: 49_152 },
];
const HEAD_DIM: usize = 64;
/// Rows of a launch: one sequence, and eight.
const ROWS: [usize; 2] = [1, 8];
/// Rows of the ops over weights on the CPU: decoding at these batches, and a prompt.
const MANY_ROWS: [usize; 7] = [1, 2, 4, 8, 16, 64, 512];
/// Most rows that get logits.
const MAX_LOGITS: usize = 64;
/// Tokens that attention looks back on.
const CONTEXT: usize = 1024;
/// Rows of a prompt.
const PROMPT: usize = 512;
const PAGE_TOKENS: usize = 64;
/// Bytes that the launches of a pass read in turn: more than caches hold, so that weights come from memory as they do
/// in a model.
const WORKING_SET: usize = 96 << 20;
/// Most launches of a pass: enough that a submission's own cost does not count, even for small ops.
const MAX_LAUNCHES: usize = 200;
/// Seconds of a pass, about, where launches are slow.
const PASS_SECONDS: f64 = 0.1;
/// Passes timed; the median counts.
const PASSES: usize = 3;

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let (backends, ops): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|arg| arg == "cpu" || arg == "wgpu");
    let runs = |name: &str| backends.is_empty() || backends.iter().any(|arg| arg == name);
    let read_rate = ReadRate::new(None)?.measure(8);
    println!("memory read by all threads: {:.1} GB/s", read_rate / 1e9);
    if runs("cpu") {
        let cpu = Cpu::new(None)?;
        let multiply_rate = cpu.multiply_rate(8);
        println!("multiply-adds by all threads: {:.1} G/s", multiply_rate / 1e9);
        bench(&cpu, Rates { read_rate, multiply_rate }, &ops, &MANY_ROWS)?;
    }
    if runs("wgpu") {
        let wgpu = Wgpu::open(&Options { software: true, ..Options::default() })?;
        bench(&wgpu, Rates { read_rate, multiply_rate: f64::INFINITY }, &ops, &ROWS)?;
    }
    Ok(())
}

/// What this machine can do per second.
#[derive(Clone, Copy)]
struct Rates {
    /// Bytes.
    read_rate: f64,
    /// Multiply-adds.
    multiply_rate: f64,
}

/// What a launch must do at least.
struct Least {
    bytes: usize,
    multiply_adds: usize,
}

impl Least {
    fn bytes(bytes: usize) -> Self {
        Self { bytes, multiply_adds: 0 }
    }

    /// `n_rows` times bf16 weights of so many bytes.
    fn weights(bytes: usize, n_rows: usize) -> Self {
        Self { bytes, multiply_adds: n_rows * bytes / Dtype::Bf16.bytes() }
    }
}

fn bench<B: Backend>(backend: &B, rates: Rates, ops: &[String], rows_of_weights: &[usize]) -> Result<()> {
    println!("\n{}\n", backend.describe());
    println!("| op | model | rows | MB | floor us | us | GB/s | share | over one row |");
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|");
    for model in &MODELS {
        let one_row = RefCell::default();
        let bench = |n_rows| Bench { backend, ops, model, n_rows, rates, one_row: &one_row };
        for &n_rows in rows_of_weights {
            bench(n_rows).weights()?;
        }
        for n_rows in ROWS {
            let last = |row: usize| {
                let table = (row * N_LANES * CONTEXT / PAGE_TOKENS) as u32;
                Place { table, position: CONTEXT as u32 - 1, live: 1, token: 0 }
            };
            bench(n_rows).cache("attention (1024 keys)", last, CONTEXT, n_rows)?;
            bench(n_rows).small()?;
            bench(n_rows).copies()?;
            bench(n_rows).sampling()?;
        }
        let place = |row: usize| Place { table: 0, position: row as u32, live: 1, token: 0 };
        bench(PROMPT).cache("attention (prompt)", place, PROMPT, 1)?;
    }
    Ok(())
}

struct Bench<'a, B> {
    backend: &'a B,
    /// What the names of ops begin with; empty: all.
    ops: &'a [String],
    model: &'a Model,
    n_rows: usize,
    rates: Rates,
    /// Seconds of each op with one row.
    one_row: &'a RefCell<HashMap<String, f64>>,
}

impl<B: Backend> Bench<'_, B> {
    /// Times launches, and prints the line. `launch` records launch number `i`.
    fn line(&self, op: &str, least: Least, launch: impl Fn(&mut B::Pass, usize)) -> Result<()> {
        if !self.ops.is_empty() && !self.ops.iter().any(|name| op.starts_with(name)) {
            return Ok(());
        }
        let pass = |n_launches: usize| -> Result<f64> {
            let start = Instant::now();
            let mut pass = self.backend.begin();
            (0..n_launches).for_each(|index| launch(&mut pass, index));
            self.backend.collect(self.backend.submit(pass, &[])?)?;
            Ok(start.elapsed().as_secs_f64() / n_launches as f64)
        };
        // The first makes pipelines and touches memory; the second tells how many fit into a pass.
        pass(1)?;
        let most = WORKING_SET.div_ceil(least.bytes).min(MAX_LAUNCHES);
        let n_launches = ((PASS_SECONDS / pass(1)?) as usize).clamp(1, most);
        let mut seconds = (0..PASSES).map(|_| pass(n_launches)).collect::<Result<Vec<_>>>()?;
        seconds.sort_by(f64::total_cmp);
        let seconds = seconds[PASSES / 2];
        let mut one_row = self.one_row.borrow_mut();
        if self.n_rows == 1 {
            one_row.insert(op.into(), seconds);
        }
        let times = one_row.get(op).map_or(String::new(), |one| format!("{:.2}", seconds / one));
        let (model, n_rows, bytes) = (self.model.name, self.n_rows, least.bytes as f64);
        let floor = (bytes / self.rates.read_rate).max(least.multiply_adds as f64 / self.rates.multiply_rate);
        let (megabytes, rate, share) = (bytes / 1e6, bytes / seconds / 1e9, 100.0 * floor / seconds);
        let (us, floor) = (1e6 * seconds, 1e6 * floor);
        println!(
            "| {op} | {model} | {n_rows} | {megabytes:.3} | {floor:.1} | {us:.1} | {rate:.2} | {share:.0} % | {times} |"
        );
        Ok(())
    }

    fn zeros(&self, words: usize) -> Result<B::Buf> {
        self.backend.alloc("bench", words)
    }

    fn filled<P: Pod>(&self, records: &[P]) -> Result<B::Buf> {
        let buf = self.zeros(size_of_val(records) / 4)?;
        self.backend.upload(&buf, 0, bytemuck::cast_slice(records))?;
        Ok(buf)
    }

    fn extents(&self) -> Result<B::Buf> {
        let extent = Extent { n_rows: self.n_rows as u32, n_logits: self.n_rows as u32 };
        self.filled(&[extent, Extent::default()])
    }

    /// Matrices of small numbers, as many as the launches of a pass go through.
    fn matrices(&self, n_rows: usize, n_cols: usize) -> Result<Vec<B::Matrix>> {
        let spec = MatrixSpec { dtype: Dtype::Bf16, n_rows, n_cols };
        let bytes = vec![0x3cu8; spec.bytes()];
        (0..WORKING_SET.div_ceil(spec.bytes()).min(MAX_LAUNCHES))
            .map(|_| self.backend.matrix(spec, &[&bytes]))
            .collect()
    }

    /// The ops that read weights once.
    fn weights(&self) -> Result<()> {
        let Model { d_model, n_heads, n_kv_heads, d_ff, n_vocab, .. } = *self.model;
        let qkv = (n_heads + 2 * n_kv_heads) * HEAD_DIM;
        self.norm_matmul("norm_matmul (qkv)", qkv)?;
        if self.n_rows <= MAX_LOGITS {
            self.norm_matmul("norm_matmul (head)", n_vocab)?;
        }
        self.norm_gate_up()?;
        self.matmul_add("matmul_add (output)", n_heads * HEAD_DIM, d_model)?;
        self.matmul_add("matmul_add (down)", d_ff, d_model)
    }

    fn norm_matmul(&self, name: &str, n_out: usize) -> Result<()> {
        let (d_model, rows) = (self.model.d_model, self.n_rows);
        let (y, x, gain) =
            (self.zeros(rows * n_out)?, self.filled(&vec![0.5f32; rows * d_model])?, self.zeros(d_model)?);
        let (w, extents) = (self.matrices(n_out, d_model)?, self.extents()?);
        let [cap, n_in, n_out, n_rows] = [rows, d_model, n_out, rows].map(|n| n as u32);
        let params =
            NormMatmulParams { cap_in: cap, cap_out: cap, n_in, n_out, eps: [1e-6; 2], softcap: 0.0, scale: 1.0 };
        self.line(name, Least::weights(2 * d_model * n_out as usize, rows), |pass, index| {
            let (w, gain) = (&w[index % w.len()], Some(&gain));
            let op = NormMatmul { y: &y, w, x: &x, gain, bias: None, gather: None, extents: &extents, n_rows, params };
            self.backend.norm_matmul(pass, op);
        })
    }

    fn norm_gate_up(&self) -> Result<()> {
        let (Model { d_model, d_ff, .. }, rows) = (*self.model, self.n_rows);
        let (h, x, gain) =
            (self.zeros(rows * d_ff)?, self.filled(&vec![0.5f32; rows * d_model])?, self.zeros(d_model)?);
        let (w, extents) = (self.matrices(d_ff, d_model)?, self.extents()?);
        let [cap, n_in, n_out, n_rows] = [rows, d_model, d_ff, rows].map(|n| n as u32);
        let params = NormGateUpParams { cap, n_in, n_out, activation: Activation::Silu as u32, eps: [1e-6; 2] };
        self.line("norm_gate_up", Least::weights(2 * 2 * d_model * d_ff, rows), |pass, index| {
            let [w_gate, w_up] = [0, 1].map(|which| &w[(2 * index + which) % w.len()]);
            let gain = Some(&gain);
            let op = NormGateUp { h: &h, w_gate, w_up, x: &x, gain, extents: &extents, n_rows, params };
            self.backend.norm_gate_up(pass, op);
        })
    }

    fn matmul_add(&self, name: &str, n_in: usize, n_out: usize) -> Result<()> {
        let rows = self.n_rows;
        let (x, y) = (self.zeros(rows * n_out)?, self.filled(&vec![0.5f32; rows * n_in])?);
        let (w, extents) = (self.matrices(n_out, n_in)?, self.extents()?);
        let [cap, n_in, n_out, n_rows] = [rows, n_in, n_out, rows].map(|n| n as u32);
        let params = MatmulAddParams { cap, n_in, n_out, scale: 1.0 };
        self.line(name, Least::weights(2 * (n_in * n_out) as usize, rows), |pass, index| {
            let w = &w[index % w.len()];
            let op = MatmulAdd { x: &x, w, y: &y, bias: None, extents: &extents, n_rows, params };
            self.backend.matmul_add(pass, op);
        })
    }

    /// The ops on keys and values, of `n_lanes` sequences of `context` tokens: each slot has one.
    fn cache(&self, name: &str, place: impl Fn(usize) -> Place, context: usize, n_lanes: usize) -> Result<()> {
        let (Model { n_heads, n_kv_heads, .. }, rows) = (*self.model, self.n_rows);
        let (width, pages) = ((n_heads + 2 * n_kv_heads) * HEAD_DIM, context / PAGE_TOKENS);
        let token_bytes = 2 * n_kv_heads * HEAD_DIM * Dtype::Bf16.bytes();
        let page = PageParams {
            page_words: (PAGE_TOKENS * token_bytes / 4) as u32,
            page_tokens: PAGE_TOKENS as u32,
            dtype: Dtype::Bf16 as u32,
            max_pages: pages as u32,
        };
        let places: Vec<Place> = (0..rows).map(place).collect();
        let keys: usize = places.iter().map(|place| place.position as usize + 1).sum();
        let places = self.filled(&places)?;
        let table = (0..n_lanes * N_LANES * pages).map(|entry| entry / (N_LANES * pages) * pages + entry % pages);
        let page_table = self.filled(&table.map(|page| page as u32).collect::<Vec<_>>())?;
        let kv_bytes = n_lanes * context * token_bytes;
        // A score and a weighted value for each key that a query head sees.
        let least = Least { bytes: kv_bytes, multiply_adds: 2 * keys * n_heads * HEAD_DIM };
        let n_planes = WORKING_SET.div_ceil(kv_bytes).min(MAX_LAUNCHES);
        let planes =
            (0..n_planes).map(|_| self.filled(&vec![0x3c3c_3c3cu32; kv_bytes / 4])).collect::<Result<Vec<_>>>()?;
        let (qkv, y) = (self.filled(&vec![0.5f32; rows * width])?, self.zeros(rows * n_heads * HEAD_DIM)?);
        let rotary = self.filled(&vec![[1.0f32, 0.0]; context * HEAD_DIM / 2])?;
        let extents = &self.extents()?;
        let [cap, n_heads, n_kv_heads, head_dim, n_rows] =
            [rows, n_heads, n_kv_heads, HEAD_DIM, rows].map(|n| n as u32);
        let (places, page_table, qkv) = (&places, &page_table, &qkv);

        let (scale, softcap, window) = (0.125, 0.0, [0; MAX_MEMBERS]);
        let params = AttentionParams { page, cap, n_heads, n_kv_heads, head_dim, scale, softcap, window };
        self.line(name, least, |pass, index| {
            let plane = &planes[index % planes.len()];
            self.backend.attention(pass, Attention { y: &y, qkv, plane, places, page_table, extents, n_rows, params });
        })?;
        let (max_positions, eps) = (context as u32, [1e-6; 2]);
        let params = RopeAppendParams {
            page,
            cap,
            n_heads,
            n_kv_heads,
            head_dim,
            max_positions,
            wide_norm: 0,
            eps,
            q_beta: [0.0; 2],
            q_length: [1; 2],
        };
        // q is read and written in place, k and v are read, and written to their page.
        let bytes = rows * (4 * (width + n_heads as usize * HEAD_DIM) + token_bytes);
        self.line("rope_append", Least::bytes(bytes), |pass, index| {
            let (plane, rotary, q_gain, k_gain) = (&planes[index % planes.len()], Some(&rotary), None, None);
            let op = RopeAppend { qkv, plane, places, page_table, rotary, q_gain, k_gain, extents, n_rows, params };
            self.backend.rope_append(pass, op);
        })
    }

    /// As many pages as there are rows, each to a page of its own.
    fn copies(&self) -> Result<()> {
        let (rows, page_bytes) =
            (self.n_rows, PAGE_TOKENS * 2 * self.model.n_kv_heads * HEAD_DIM * Dtype::Bf16.bytes());
        let pairs = (0..rows as u32).map(|row| PageCopy { from: 2 * row, to: 2 * row + 1 });
        let (copies, bytes) = (&self.filled(&pairs.collect::<Vec<_>>())?, 2 * rows * page_bytes);
        let planes = WORKING_SET.div_ceil(bytes).min(MAX_LAUNCHES);
        let planes = (0..planes).map(|_| self.filled(&vec![0u32; bytes / 4])).collect::<Result<Vec<_>>>()?;
        let params = CopyPagesParams { page_words: page_bytes as u32 / 4, reserved: [0; 3] };
        self.line("copy_pages", Least::bytes(bytes), |pass, index| {
            let (plane, n_copies) = (&planes[index % planes.len()], rows as u32);
            self.backend.copy_pages(pass, CopyPages { plane, copies, n_copies, params });
        })
    }

    /// The ops that move rows only.
    fn small(&self) -> Result<()> {
        let (Model { d_model, n_vocab, .. }, rows) = (*self.model, self.n_rows);
        let (x, y, gain) =
            (self.zeros(rows * d_model)?, self.filled(&vec![0.5f32; rows * d_model])?, self.zeros(d_model)?);
        let (extents, n_rows) = (&self.extents()?, rows as u32);
        let (cap, d_model_u32) = (rows as u32, d_model as u32);
        let params = NormAddParams { cap, d_model: d_model_u32, eps: [1e-6; 2] };
        self.line("norm_add", Least::bytes(4 * 3 * rows * d_model), |pass, _| {
            self.backend.norm_add(pass, NormAdd { x: &x, y: &y, gain: &gain, extents, n_rows, params });
        })?;

        let tokens = |row: usize| Row { slot: 0, lane: 0, token: (row * 1001 % n_vocab) as u32, position: row as u32 };
        let row_records = self.filled(&(0..rows).map(tokens).collect::<Vec<_>>())?;
        let (places, slots) = (self.zeros(rows * size_of::<Place>() / 4)?, self.filled(&[Slot::zeroed()])?);
        let spec = MatrixSpec { dtype: Dtype::Bf16, n_rows: n_vocab, n_cols: d_model };
        let table = &self.backend.matrix(spec, &[&vec![0x3cu8; spec.bytes()]])?;
        let params = EmbedParams { cap, d_model: d_model_u32, max_pages: 1, reserved: 0, scale: [1.0; 2] };
        self.line("embed", Least::bytes((2 + 4) * rows * d_model), |pass, _| {
            let (rows, slots) = (&row_records, &slots);
            self.backend.embed(pass, Embed { x: &x, places: &places, table, rows, slots, extents, n_rows, params });
        })
    }

    /// The ops over rows of logits, all rows apart.
    fn sampling(&self) -> Result<()> {
        let (n_vocab, rows) = (self.model.n_vocab, self.n_rows);
        let (mask_words, n_slots) = (n_vocab.div_ceil(32), rows);
        let slot = Slot {
            max_tokens: u32::MAX,
            alpha: 1.0,
            inverse_temperature: 1.25,
            top_p: (0.95 * 2f64.powi(32)) as u32,
            repetition_penalty: 1.0,
            ..Slot::zeroed()
        };
        let greedy = &self.filled(&vec![Slot { inverse_temperature: 0.0, top_p: 0, ..slot }; n_slots])?;
        let unfiltered = &self.filled(&vec![Slot { top_p: 0, ..slot }; n_slots])?;
        let nucleus = &self.filled(&vec![slot; n_slots])?;
        let samples: Vec<Sample> =
            (0..rows as u32).map(|row| Sample { slot: row, row_base: row, row_expert: row, row_anti: row }).collect();
        let samples = &self.filled(&samples)?;
        let (scores, counts) = (&self.zeros(n_slots * 2 * 32 * mask_words)?, &self.zeros(1)?);
        let records = &self.zeros(n_slots * size_of::<StepRecord>() / 4)?;
        let constraints = &self.filled(&vec![u32::MAX; constraints_words(n_slots, mask_words)])?;
        let noise = Cell::new(1u32);
        // Three times the sum of four uniform numbers: about the spread of real logits.
        let logit = || -> f32 {
            let uniform = || {
                noise.set(noise.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
                (noise.get() >> 8) as f32 / (1 << 24) as f32
            };
            3.0 * (0..4).map(|_| uniform()).sum::<f32>()
        };
        let logits = || self.filled(&(0..rows * n_vocab).map(|_| logit()).collect::<Vec<_>>());
        let logits = [logits()?, logits()?, logits()?];
        let [base, expert, anti] = &logits;
        let (n_ids, strides, n_samples) = (n_vocab as u32, [n_vocab as u32; 3], rows as u32);
        let mask_words = mask_words as u32;

        let params = CombineSampleParams { n_ids, strides, mask_words, has_counts: 0, reserved: [0; 2] };
        let settings = [
            ("greedy", greedy, Choice::Greedy),
            ("drawn", unfiltered, Choice::Drawn),
            ("top-p", nucleus, Choice::Filtered),
        ];
        let draw = |pass: &mut B::Pass, slots, choice| {
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
        };
        for (settings, slots, choice) in settings {
            let least = Least::bytes(4 * 3 * rows * n_vocab);
            self.line(&format!("combine_sample ({settings})"), least, |pass, _| draw(pass, slots, choice))?;
        }
        // Where a slot drew nothing there is nothing to record, and the lines above may have been left out.
        let (mut pass, slots) = (self.backend.begin(), nucleus);
        draw(&mut pass, slots, Choice::Filtered);
        self.backend.collect(self.backend.submit(pass, &[])?)?;
        let params = RecordParams { n_ids, strides, mask_words, n_top: 10, reserved: [0; 2] };
        self.line("record", Least::bytes(4 * 4 * rows * n_vocab), |pass, _| {
            let op = Record { records, slots, scores, base, expert, anti, samples, constraints, n_samples, params };
            self.backend.record(pass, op);
        })
    }
}
