//! `bench`: the trio against its base on this machine, as the paper measures it: fixed lengths, no end of text, the two in
//! turn. Models are directories, the demo's, or shapes of published models whose weights are made from a seed.

mod floor;
mod report;
mod timeline;

use super::args::{BenchArgs, Setting};
use super::interrupt::Watch;
use super::loading;
use super::open;
use super::output::{self, Stdout};
use crate::backend::cpu::ReadRate;
use crate::backend::cuda::Timeline;
use crate::backend::wgpu;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::hub::Weights;
use crate::engine::BackendChoice;
use crate::engine::event::Event;
use crate::engine::plan::machine_sizes;
use crate::engine::request::{Draft, Request, Sampling};
use crate::engine::scheduler::TenantId;
use crate::engine::trio::Trio;
use crate::engine::{DEFAULT_PREFILL_ROWS, EngineOptions, Handle};
use crate::{Error, Result};
use floor::Floor;
use report::{Report, Row, Side};
use std::cell::Cell;
use std::sync::Arc;

const RUNS: usize = 5;
const QUICK_RUNS: usize = 3;
/// How much shorter `--quick` is.
const QUICK_DIVISOR: usize = 8;
const QUICK_MAX_BATCH: usize = 16;

/// The paper's three, then batches.
const SETTINGS: [Setting; 7] = [
    Setting { prompt: 8, output: 512, batch: 1 },
    Setting { prompt: 512, output: 8, batch: 1 },
    Setting { prompt: 8, output: 8, batch: 1 },
    Setting { prompt: 8, output: 64, batch: 1 },
    Setting { prompt: 8, output: 64, batch: 4 },
    Setting { prompt: 8, output: 64, batch: 16 },
    Setting { prompt: 8, output: 64, batch: 64 },
];

pub(super) fn run(args: &BenchArgs) -> Result<()> {
    // Once: a hub's branch may move between two looks.
    let sources = args.models.sources(Weights::All)?;
    let (checkpoints, member_of_role) = open::checkpoints(&sources)?;
    if checkpoints.len() < 3 {
        return Err(Error::argument("expert", "a bench needs three different models: equal ones are computed once"));
    }
    let checkpoints: Vec<&Checkpoint> = checkpoints.iter().collect();
    let settings = settings_that_fit(args, &checkpoints)?;
    let mut options = options(args, &settings);
    if args.timeline && options.backend.on_this_machine(&options.kernels) != BackendChoice::Cuda {
        return Err(Error::argument("timeline", "only the CUDA backend tells the time of kernels"));
    }
    let timeline = args.timeline.then(Timeline::default);
    options.timeline.clone_from(&timeline);
    refuse_what_does_not_fit(&checkpoints, member_of_role, &settings, &options)?;
    let trio = args.models.open_trio(&sources)?;
    let engine = loading::start(&trio, options.clone())?;
    if !engine.is_whole() {
        return Err(Error::device("bench", "the device has no memory for all texts of the largest setting at a time"));
    }
    let bench = Bench {
        n_timed: Cell::new(0),
        n_runs: args.runs.map_or(if args.quick { QUICK_RUNS } else { RUNS }, usize::from),
        floor: Floor::new(&trio, options.kv_cache_dtype),
        engine,
        read_rate: ReadRate::new(args.device.threads.map(usize::from))?,
        trio,
    };
    let mut out = Stdout::new();
    if let Some(timeline) = timeline {
        return timeline::run(&bench, &settings, &timeline, &mut out);
    }
    let mut report = Report::new(&bench);
    if !args.json {
        out.line(&report.heading())?;
    }
    for setting in settings {
        let row = bench.measure(setting)?;
        if !args.json {
            out.line(&row.text())?;
        }
        report.rows.push(row);
    }
    if args.json { out.json(&report) } else { out.line(&report.ending()) }
}

/// Here nothing may wait for memory or for the next step: a batch that ran in parts would be a false figure.
fn refuse_what_does_not_fit(
    checkpoints: &[&Checkpoint],
    member_of_role: [usize; 3],
    settings: &[Setting],
    options: &EngineOptions,
) -> Result<()> {
    let room = options.room()?;
    let mut sizes = machine_sizes(checkpoints, member_of_role, options, &room)?;
    let prefill_rows = sizes.prefill_rows;
    let in_parts = |s: &&Setting| s.batch > 1 && s.batch * s.prompt > prefill_rows;
    if let Some(Setting { prompt, batch, .. }) = settings.iter().find(in_parts) {
        let message = format!("{batch} prompts of {prompt} tokens are more than one step takes: {prefill_rows} tokens");
        return Err(Error::argument("setting", message));
    }
    sizes.bytes.workspace += ReadRate::bytes() as u64;
    sizes.check("the largest setting", room.memory)
}

/// The settings asked for, without those that are longer than the models' positions.
fn settings_that_fit(args: &BenchArgs, checkpoints: &[&Checkpoint]) -> Result<Vec<Setting>> {
    let mut settings = match (&args.setting[..], args.quick) {
        ([], false) => SETTINGS.to_vec(),
        ([], true) => SETTINGS.map(quick).into_iter().filter(|setting| setting.batch <= QUICK_MAX_BATCH).collect(),
        (given, _) => given.to_vec(),
    };
    settings.dedup();
    let limit = checkpoints.iter().map(|checkpoint| checkpoint.config.max_positions).min().unwrap_or(0);
    let (fitting, long): (Vec<_>, Vec<_>) = settings.into_iter().partition(|s| s.prompt + s.output <= limit);
    let left_out = |Setting { prompt, output, .. }: &Setting| {
        format!("{prompt} and {output} tokens are more than the models' {limit} positions")
    };
    if fitting.is_empty() {
        return Err(Error::argument("setting", left_out(&long[0])));
    }
    long.iter().for_each(|setting| output::warn(&format!("left out: {}", left_out(setting))));
    Ok(fitting)
}

fn quick(setting: Setting) -> Setting {
    let shorter = |tokens: usize| (tokens / QUICK_DIVISOR).max(8);
    Setting { prompt: shorter(setting.prompt), output: shorter(setting.output), ..setting }
}

/// An engine with room for the largest of `settings`, in which all prompts of a batch start together.
fn options(args: &BenchArgs, settings: &[Setting]) -> EngineOptions {
    let most = |of: fn(&Setting) -> usize| settings.iter().map(of).max().unwrap_or(1);
    let drafts = vec![draft(settings[0], 0, 1.0, 1); most(|s| s.batch)];
    EngineOptions {
        max_model_len: most(|s| s.prompt + s.output),
        kv_tokens: Some(most(|s| s.batch * (s.prompt + s.output))),
        prefill_rows: most(|s| if s.batch > 1 { s.batch * s.prompt } else { 1 }).max(DEFAULT_PREFILL_ROWS),
        ..args.device.engine_for(&drafts)
    }
}

/// Text number `index` of a batch: `alpha` 0 is the base alone, which computes nothing of the pair.
fn draft(setting: Setting, index: usize, alpha: f32, n_ids: usize) -> Draft {
    let prompt: Vec<u32> = (0..setting.prompt).map(|i| ((131 * index + 7 * i) % n_ids) as u32).collect();
    let sampling = Sampling { alpha, max_tokens: setting.output as u32, ignore_eos: true, ..Sampling::default() };
    Draft { prompts: std::array::from_fn(|_| prompt.clone()), sampling, ..Draft::default() }
}

/// What all settings are measured with.
struct Bench {
    trio: Arc<Trio>,
    engine: Handle,
    floor: Floor,
    read_rate: ReadRate,
    n_runs: usize,
    /// Runs so far, each a tenant of its own, who finds no prompt computed.
    n_timed: Cell<u64>,
}

/// Milliseconds of one run of a batch.
#[derive(Clone, Copy)]
struct Times {
    /// To the first token.
    prompt: f64,
    /// From the first token to the last.
    decode: f64,
}

impl Bench {
    /// Base and trio in turn, the yardstick between them: what slows the machine down slows all three.
    fn measure(&self, setting: Setting) -> Result<Row> {
        let (mut base, mut trio, mut rates) = (Vec::new(), Vec::new(), Vec::new());
        // The first run touches memory that no run has touched, and makes what is made once.
        let warm_up = Setting { output: 2, ..setting };
        self.time(warm_up, 0.0)?;
        self.time(warm_up, 1.0)?;
        for _ in 0..self.n_runs {
            base.push(self.time(setting, 0.0)?);
            trio.push(self.time(setting, 1.0)?);
            rates.push(self.read_rate.measure(3));
        }
        let rate = self.reads_host_memory().then(|| report::median(rates));
        let (base_bytes, trio_bytes) = (self.floor.base(setting), self.floor.trio(setting));
        let base = Side::new(setting, &base, base_bytes, rate);
        let trio = Side::new(setting, &trio, trio_bytes, rate);
        Ok(Row::new(setting, base, trio, rate))
    }

    fn time(&self, setting: Setting, alpha: f32) -> Result<Times> {
        let limits = self.trio.limits();
        let tenant = TenantId(self.n_timed.replace(self.n_timed.get() + 1));
        let draft = |index| Draft { tenant, ..draft(setting, index, alpha, limits.n_ids) };
        let request = |index| Request::new(draft(index), &limits);
        let requests = (0..setting.batch).map(request).collect::<Result<_>>()?;
        let watch = Watch::new();
        let mut events = self.engine.submit(requests)?;
        let mut times = Times { prompt: 0.0, decode: 0.0 };
        while let Some(event) = watch.next(&mut events)? {
            let Event::Done { completion, .. } = event else { continue };
            if let Some(error) = completion.error {
                return Err(error);
            }
            times.prompt = times.prompt.max(completion.timings.prompt_ms);
            times.decode = times.decode.max(completion.timings.predicted_ms);
        }
        Ok(times)
    }

    /// True where the models stand in the memory whose rate is measured: on the CPU, and with drivers that run on it.
    fn reads_host_memory(&self) -> bool {
        let software = |adapter: &wgpu::Adapter| adapter.software && self.engine.device().contains(&adapter.name);
        self.engine.device().starts_with("cpu") || wgpu::adapters().iter().any(software)
    }
}
