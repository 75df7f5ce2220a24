//! `plan`: how much memory three models take on a device, and what fits, before anything is loaded. Reads config.json and
//! the headers of the weights, or takes shapes by name.

use super::args::PlanArgs;
use super::loading::warn_of_idle_cards;
use super::open;
use super::output::{Stdout, gigabytes, table};
use crate::backend::params::MAX_SLOTS;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::hub::Weights;
use crate::engine::EngineOptions;
use crate::engine::plan::{MachineBytes, MachineSizes, ModelBytes, Room, machine_sizes};
use crate::text::vocabulary::ROLES;
use crate::{Error, Result};
use serde::Serialize;

pub(super) fn run(args: &PlanArgs) -> Result<()> {
    let (checkpoints, member_of_role) = open::checkpoints(&args.models.sources(Weights::Headers)?)?;
    let checkpoints: Vec<&Checkpoint> = checkpoints.iter().collect();
    let positions = checkpoints.iter().map(|c| c.config.max_positions).min().expect("there is a base");
    let max_model_len = open::model_len(args.max_model_len, positions)?;
    let options = args.device.engine(EngineOptions::default());
    let prefill_rows = args.chunked_prefill_size.map_or(options.prefill_rows, usize::from);
    let options = EngineOptions { prefill_rows, ..options };
    warn_of_idle_cards(&options);
    let planner = Planner { room: options.room()?, options, checkpoints, member_of_role, positions };
    let asked = Size { batch: args.max_num_seqs.into(), max_model_len };
    let sizes = planner.sizes(asked);
    let report = Report::new(&planner, asked, &sizes);
    let mut out = Stdout::new();
    if args.json {
        out.json(&report)?
    } else {
        out.line(&report.text())?
    }
    sizes?.check(&asked.describe(), report.memory)
}

/// How many texts, and how long.
#[derive(Clone, Copy, Serialize)]
struct Size {
    batch: usize,
    max_model_len: usize,
}

impl Size {
    fn describe(self) -> String {
        format!(
            "{} of {} tokens",
            if self.batch == 1 { "a text".into() } else { format!("{} texts", self.batch) },
            self.max_model_len
        )
    }
}

/// What is asked again and again for different sizes.
struct Planner<'a> {
    room: Room,
    options: EngineOptions,
    checkpoints: Vec<&'a Checkpoint>,
    member_of_role: [usize; 3],
    positions: usize,
}

impl Planner<'_> {
    fn sizes(&self, Size { batch, max_model_len }: Size) -> Result<MachineSizes> {
        let options = EngineOptions { n_slots: batch, max_model_len, ..self.options.clone() };
        machine_sizes(&self.checkpoints, self.member_of_role, &options, &self.room)
    }

    fn fits(&self, size: Size) -> bool {
        self.sizes(size).and_then(|sizes| sizes.check(&size.describe(), self.room.memory)).is_ok()
    }

    /// The largest number in `1..=limit` of which `size` makes a size that fits.
    fn largest(&self, limit: usize, size: impl Fn(usize) -> Size) -> Option<usize> {
        let (mut fitting, mut too_large) = (0, limit + 1);
        while fitting + 1 < too_large {
            let middle = fitting.midpoint(too_large);
            if self.fits(size(middle)) { fitting = middle } else { too_large = middle }
        }
        (fitting > 0).then_some(fitting)
    }
}

#[derive(Serialize)]
struct Report {
    device: String,
    /// Bytes that may be used; none where the device does not tell.
    memory: Option<u64>,
    /// Bytes that an op can bind at once.
    binding_limit: u64,
    models: Vec<Model>,
    size: Size,
    /// Absent where a buffer of it cannot be bound.
    #[serde(flatten)]
    bytes: Option<MachineBytes>,
    total: Option<u64>,
    /// Why it does not fit.
    reason: Option<String>,
    fits: bool,
    /// Longest text at this batch.
    longest_model_len: Option<usize>,
    /// Most texts of this length at a time.
    largest_batch: Option<usize>,
}

#[derive(Serialize)]
struct Model {
    role: &'static str,
    name: String,
    #[serde(flatten)]
    bytes: ModelBytes,
    /// True where an earlier role has the same weights, which are loaded once.
    shared: bool,
}

impl Report {
    fn new(planner: &Planner, size: Size, sizes: &Result<MachineSizes>) -> Self {
        let bytes = sizes.as_ref().map(|sizes| sizes.bytes).ok();
        let check = |sizes: &MachineSizes| sizes.check(&size.describe(), planner.room.memory);
        let checked = sizes.as_ref().map_err(Error::clone).and_then(check);
        let model = |(index, role): (usize, &'static str)| {
            let member = planner.member_of_role[index];
            let checkpoint = planner.checkpoints[member];
            Model {
                role,
                name: checkpoint.name.clone(),
                bytes: ModelBytes::of(checkpoint, planner.options.kv_cache_dtype),
                shared: planner.member_of_role[..index].contains(&member),
            }
        };
        Self {
            device: planner.room.device.clone(),
            memory: planner.room.memory,
            binding_limit: planner.room.binding_limit,
            models: ROLES.into_iter().enumerate().map(model).collect(),
            size,
            bytes,
            total: bytes.as_ref().map(MachineBytes::total),
            reason: checked.as_ref().err().map(Error::to_string),
            fits: checked.is_ok(),
            longest_model_len: planner.largest(planner.positions, |max_model_len| Size { max_model_len, ..size }),
            largest_batch: planner.largest(MAX_SLOTS, |batch| Size { batch, ..size }),
        }
    }

    fn text(&self) -> String {
        let row = |cells: [&str; 4]| cells.map(String::from).to_vec();
        let mut models = vec![row(["role", "weights", "KV a token", "model"])];
        for Model { role, name, bytes, shared } in &self.models {
            let weights = if *shared { "shared".into() } else { gigabytes(bytes.weights) };
            models.push(row([role, &weights, &format!("{:.1} KB", bytes.kv_per_token as f64 / 1e3), name]));
        }
        let memory = match self.memory {
            Some(memory) => format!("{} may be used", gigabytes(memory)),
            None => "it does not tell how much memory is free: only the limits of its buffers are known".into(),
        };
        let part = |of: fn(&MachineBytes) -> u64| self.bytes.as_ref().map_or("-".into(), |bytes| gigabytes(of(bytes)));
        let verdict = match (&self.reason, self.memory, self.total) {
            (Some(reason), ..) => format!("no: {reason}"),
            (None, Some(memory), Some(total)) => format!("yes, {} are left", gigabytes(memory - total)),
            (None, ..) => "its buffers can be bound; whether there is memory shows when it is loaded".into(),
        };
        let or_none = |n: Option<usize>, what: &str| n.map_or("none fits".into(), |n| format!("{n} {what}"));
        let lines = [
            ["device", &format!("{}; {memory}", self.device)],
            ["weights", &part(|bytes| bytes.weights)],
            ["workspace", &part(|bytes| bytes.workspace)],
            ["KV cache", &format!("{} for {}", part(|bytes| bytes.kv_cache), self.size.describe())],
            ["in all", &part(MachineBytes::total)],
            ["fits", &verdict],
            ["longest text", &or_none(self.longest_model_len, &format!("tokens at batch {}", self.size.batch))],
            ["largest batch", &or_none(self.largest_batch, &format!("texts of {} tokens", self.size.max_model_len))],
        ];
        format!("{}\n\n{}", table(&models), table(&lines.map(|line| line.map(String::from).to_vec())))
    }
}
