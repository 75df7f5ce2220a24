//! What `bench` shows: a line for the base and one for the trio of each setting, or one JSON object.

use super::floor::Bytes;
use super::{Bench, Setting, Times};
use crate::cli::output::gigabytes;
use crate::text::vocabulary::ROLES;
use serde::Serialize;

/// Everything measured.
#[derive(Serialize)]
pub(super) struct Report {
    device: String,
    runs: usize,
    models: Vec<Model>,
    pub(super) rows: Vec<Row>,
}

#[derive(Serialize)]
struct Model {
    role: &'static str,
    name: String,
    weight_bytes: u64,
    kv_bytes_per_token: u64,
}

/// One setting.
#[derive(Serialize)]
pub(super) struct Row {
    #[serde(flatten)]
    setting: Setting,
    base: Side,
    trio: Side,
    /// Time of the trio's texts over that of the base's, prompts included.
    slow_down: f64,
    /// The same ratio of the bytes that must be read.
    floor: f64,
    slow_down_over_floor: f64,
    /// The yardstick, the median of its runs; none where the models are not in memory that the CPU reads.
    read_bytes_per_second: Option<f64>,
}

/// Base or trio in one setting: medians.
#[derive(Serialize)]
pub(super) struct Side {
    /// To the first token.
    prompt_ms: f64,
    /// From one token of a text to its next.
    ms_per_token: f64,
    /// All texts of the batch together.
    tokens_per_second: f64,
    total_ms: f64,
    bytes_per_step: f64,
    /// `bytes_per_step` over what the machine reads in that time.
    share_of_bandwidth: Option<f64>,
    #[serde(skip)]
    bytes_of_text: f64,
}

impl Report {
    pub(super) fn new(bench: &Bench) -> Self {
        let checkpoints = bench.trio.models().checkpoint_of_role();
        let models = checkpoints.iter().zip(ROLES).zip(&bench.floor.models).map(|((checkpoint, role), bytes)| Model {
            role,
            name: checkpoint.name.clone(),
            weight_bytes: bytes.weights,
            kv_bytes_per_token: bytes.kv_per_token,
        });
        let device = bench.engine.device().to_string();
        Self { device, runs: bench.n_runs, models: models.collect(), rows: Vec::new() }
    }

    /// What runs where, and the columns' names.
    pub(super) fn heading(&self) -> String {
        let models: Vec<String> = self
            .models
            .iter()
            .map(|model| format!("{:<12} {}, {} of weights\n", model.role, model.name, gigabytes(model.weight_bytes)))
            .collect();
        let columns = ["prompt", "output", "batch", "models", "prompt ms", "ms/token", "tok/s", "of read"];
        let columns =
            line(columns.map(String::from), ["slow-down", "floor", "over floor", "read GB/s"].map(String::from));
        format!("{}device       {}\n\n{columns}", models.concat(), self.device)
    }

    /// What the columns mean.
    pub(super) fn ending(&self) -> String {
        format!(
            "\nMedians of {} runs: base, trio and the rate at which all threads read memory (the best of three passes), in turn.\n\
             ms/token   from one token of a text to its next; tok/s counts all texts of the batch\n\
             of read    bytes that a step must read, over what the machine reads in that time\n\
             slow-down  whole texts, prompt and output; floor: the ratio of the bytes that they must read",
            self.runs
        )
    }
}

impl Row {
    pub(super) fn new(setting: Setting, base: Side, trio: Side, rate: Option<f64>) -> Self {
        let (slow_down, floor) = (trio.total_ms / base.total_ms, trio.bytes_of_text / base.bytes_of_text);
        let slow_down_over_floor = slow_down / floor;
        Self { setting, base, trio, slow_down, floor, slow_down_over_floor, read_bytes_per_second: rate }
    }

    /// Two lines.
    pub(super) fn text(&self) -> String {
        let Setting { prompt, output, batch } = self.setting;
        let [prompt, output, batch] = [prompt, output, batch].map(|n| n.to_string());
        let [slow_down, floor, over] =
            [self.slow_down, self.floor, self.slow_down_over_floor].map(|ratio| format!("{ratio:.2}"));
        let rate = self.read_bytes_per_second.map_or("-".into(), |rate| format!("{:.1}", rate / 1e9));
        let base = line(self.base.cells([prompt, output, batch], "base"), Default::default());
        format!("{base}\n{}", line(self.trio.cells(Default::default(), "trio"), [slow_down, floor, over, rate]))
    }
}

impl Side {
    pub(super) fn new(setting: Setting, runs: &[Times], bytes: Bytes, rate: Option<f64>) -> Self {
        let median_of = |of: fn(&Times) -> f64| median(runs.iter().map(of).collect());
        let ms_per_token = median_of(|times| times.decode) / (setting.output - 1) as f64;
        Self {
            prompt_ms: median_of(|times| times.prompt),
            ms_per_token,
            tokens_per_second: 1e3 * setting.batch as f64 / ms_per_token,
            total_ms: median_of(|times| times.prompt + times.decode),
            bytes_per_step: bytes.step,
            share_of_bandwidth: rate.map(|rate| bytes.step / (1e-3 * ms_per_token * rate)),
            bytes_of_text: bytes.text,
        }
    }

    fn cells(&self, [prompt, output, batch]: [String; 3], models: &str) -> [String; 8] {
        let share = self.share_of_bandwidth.map_or("-".into(), |share| format!("{:.0} %", 100.0 * share));
        let [prompt_ms, ms, rate] = [self.prompt_ms, self.ms_per_token, self.tokens_per_second];
        let [prompt_ms, ms, rate] = [format!("{prompt_ms:.1}"), format!("{ms:.3}"), format!("{rate:.1}")];
        [prompt, output, batch, models.into(), prompt_ms, ms, rate, share]
    }
}

/// Columns of fixed width, so that lines can be printed as they are measured.
fn line(cells: [String; 8], ratios: [String; 4]) -> String {
    let [prompt, output, batch, models, prompt_ms, ms, rate, share] = cells;
    let [slow_down, floor, over, read_rate] = ratios;
    let left = format!("{prompt:>6} {output:>6} {batch:>5}  {models:<6} {prompt_ms:>10} {ms:>9} {rate:>8} {share:>7}");
    format!("{left}  {slow_down:>9} {floor:>6} {over:>10} {read_rate:>9}").trim_end().into()
}

/// The middle one, of an even number the upper.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_median_is_the_middle_one_and_not_the_best() {
        for (values, expected) in [(&[3.0][..], 3.0), (&[9.0, 1.0, 2.0], 2.0), (&[4.0, 1.0, 3.0, 2.0], 3.0)] {
            assert_eq!(super::median(values.to_vec()), expected, "{values:?}");
        }
    }
}
