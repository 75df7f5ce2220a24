//! What was written on the command line, as clap reads it. Names follow llama.cpp, transformers and vLLM.

use super::fields::RequestFields;
use super::sampling::SamplingFields;
use crate::backend::Dtype;
use crate::backend::cuda::{Arch, Sources};
use crate::backend::params::MAX_SLOTS;
use crate::checkpoint::shapes::{SHAPES, Shape};
use crate::engine::BackendChoice;
use crate::engine::plan::MAX_PREFILL_ROWS;
use crate::text::vocabulary::IdPolicy;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;

/// A large language model steered by a small tuned pair: base + alpha * (expert - anti-expert), decoded together.
#[derive(Parser)]
#[command(name = "proxytune", version, after_help = "First look, nothing to download: proxytune demo")]
pub(super) struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Show proxy tuning at work on three small models that are in this binary
    Demo(DemoArgs),
    /// Produce text
    Generate(Box<GenerateArgs>),
    /// Talk with the models, a line a message
    ///
    /// Each role reads the conversation in its own form: those of --chat through their chat template, the others as plain
    /// text, what was asked and answered line after line. On a pipe each line is a message, and standard output has
    /// nothing but the replies; the exit code is 6 where some lines failed.
    Chat(Box<ChatArgs>),
    /// Say whether three models fit together; exit code 4 where they do not
    ///
    /// Of the weights only the headers are read. Of a model that is an id on the hub only they are fetched, and the
    /// small files.
    Compat(CompatArgs),
    /// List backends and adapters of this machine
    Devices(DevicesArgs),
    /// Describe this machine, and check the kernels on it
    Doctor(DoctorArgs),
    /// Measure how much slower three models are than the base alone
    Bench(Box<BenchArgs>),
    /// Say how much memory three models take, and whether it is there; exit code 5 where it is not
    ///
    /// Of the weights only the headers are read. Of a model that is an id on the hub only they are fetched, and the
    /// small files.
    Plan(Box<PlanArgs>),
    /// Compile the kernels of the CUDA backend ahead, for --cubins; needs NVRTC and no card
    Kernels(KernelsArgs),
    /// Print the completions of a shell: `source <(proxytune completions bash)`
    Completions(CompletionsArgs),
}

/// Which models, and what is agreed about them.
#[derive(Args, Default)]
#[command(next_help_heading = "Models")]
pub(super) struct ModelArgs {
    /// The large model: a directory in the Hugging Face layout, or an id on the hub (org/name); ./x is always a path
    #[arg(long, value_name = "DIR|ID")]
    pub base: Option<PathBuf>,
    /// The small tuned model; the base stands in for a missing one
    #[arg(long, value_name = "DIR|ID")]
    pub expert: Option<PathBuf>,
    /// The small untuned model; the base stands in for a missing one
    #[arg(long, value_name = "DIR|ID")]
    pub anti_expert: Option<PathBuf>,
    /// Branch, tag or commit of every model that is an id [default: main]
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,
    /// Branch, tag or commit of the base alone
    #[arg(long, value_name = "REV")]
    pub base_revision: Option<String>,
    /// Branch, tag or commit of the expert alone
    #[arg(long, value_name = "REV")]
    pub expert_revision: Option<String>,
    /// Branch, tag or commit of the anti-expert alone
    #[arg(long, value_name = "REV")]
    pub anti_expert_revision: Option<String>,
    /// Use the three small models of `proxytune demo`
    #[arg(long, conflicts_with_all = ["base", "expert", "anti_expert", "revision", "base_revision", "expert_revision",
        "anti_expert_revision"])]
    pub demo: bool,
    /// What becomes of a token id that the models define differently: delta (use the difference), zero (base alone
    /// decides) or ban (never sampled); repeatable
    #[arg(long, value_name = "ID=POLICY", value_parser = id_policy)]
    pub id_policy: Vec<(u32, IdPolicy)>,
    /// Load weights that are NaN or infinite; a text that meets one ends with an error
    #[arg(long)]
    pub allow_non_finite_weights: bool,
}

/// Which models, for commands that may put prompts into a chat template.
#[derive(Args, Default)]
#[command(next_help_heading = "Models")]
pub(super) struct ChatModelArgs {
    #[command(flatten)]
    pub named: ModelArgs,
    /// Chat template for every role, in place of the models' own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
}

/// Where the models run.
#[derive(Args, Default)]
#[command(next_help_heading = "Device")]
pub(super) struct DeviceArgs {
    /// auto: an NVIDIA card through cuda, else a real GPU through wgpu, else the CPU; software adapters only with wgpu
    #[arg(long, value_name = "NAME", value_enum, default_value_t)]
    pub backend: Backend,
    /// Number of the adapter, as `proxytune devices` lists them
    #[arg(long, value_name = "N")]
    pub device: Option<usize>,
    /// Threads of the CPU backend [default: all]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    #[command(flatten)]
    pub kernels: KernelArgs,
    /// Type of cached keys and values; auto: each checkpoint's own
    #[arg(long, value_name = "TYPE", value_enum, default_value_t)]
    pub kv_cache_dtype: KvDtype,
    /// Share of the memory that is free (for vLLM it is of all memory) that may be used; not through wgpu, which
    /// does not tell what is free [default: 0.95]
    #[arg(long, value_name = "F", allow_hyphen_values = true)]
    pub gpu_memory_utilization: Option<f32>,
    /// Size of the KV cache, as 2000000000, 2g (10^9) or 2G (2^30) [default: what the texts need, as far as there is
    /// memory; at most 2G through wgpu]
    #[arg(long, value_name = "BYTES", value_parser = n_bytes)]
    pub kv_cache_memory_bytes: Option<u64>,
}

/// Where the kernels of the CUDA backend come from.
#[derive(Args, Default)]
#[command(next_help_heading = "Device")]
pub(super) struct KernelArgs {
    /// NVRTC, which compiles the kernels of the CUDA backend when it first meets a card [default: looked for, in
    /// site-packages too]
    #[arg(long, value_name = "PATH")]
    pub nvrtc: Option<PathBuf>,
    /// Ready kernels, as `proxytune kernels` makes them, which need no NVRTC [default: `cubins` beside the program, if it
    /// is there]
    #[arg(long, value_name = "DIR")]
    pub cubins: Option<PathBuf>,
    /// Where compiled kernels are kept [default: ~/.cache/proxytune/kernels, or what the system has for such things]
    #[arg(long, value_name = "DIR")]
    pub kernel_cache: Option<PathBuf>,
}

impl KernelArgs {
    /// The same for the library.
    pub(super) fn sources(&self) -> Sources {
        let Self { nvrtc, cubins, kernel_cache } = self;
        Sources { nvrtc: nvrtc.clone(), cubins: cubins.clone(), cache: kernel_cache.clone() }
    }
}

/// How much is done at a time, for commands that may have much to do.
#[derive(Args, Default)]
#[command(next_help_heading = "Device")]
pub(super) struct StepArgs {
    /// Texts at a time; others wait [default: as many as there are, at most 64 and what there is memory for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MAX_SLOTS as i64))]
    pub max_num_seqs: Option<u16>,
    /// Prompt tokens that each model takes in a step, beside the texts under way [default: 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MAX_PREFILL_ROWS as i64))]
    pub chunked_prefill_size: Option<u16>,
}

#[derive(Args)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    pub models: ChatModelArgs,
    #[command(flatten)]
    pub request: RequestFields,
    /// One JSON object a line: {"id": .., "prompt": .., any flag of a request by its snake_case name}, with
    /// "logit_bias": {"ID": X, ..}; flags given here are the defaults of the lines; `-` is standard input
    #[arg(short, long, value_name = "IN.jsonl", help_heading = "Batch", conflicts_with_all = ["prompt", "file"])]
    pub input_file: Option<PathBuf>,
    /// Where the results of a batch go, one a line in the order of the input [default: standard output, also `-`]
    ///
    /// If the file is there, the run resumes: finished lines are kept, a torn last line is dropped, failed lines run
    /// again, and results with other ids than the input's are refused. Ids are compared, not prompts. Lines that run
    /// again between finished ones go through OUT.jsonl.partial, which takes the file's place at the end; after a
    /// crash the next run joins the two.
    #[arg(short, long, value_name = "OUT.jsonl", help_heading = "Batch")]
    pub output_file: Option<PathBuf>,
    /// Start anew where the output file is there, and lose what it holds
    #[arg(long, requires = "output_file", help_heading = "Batch")]
    pub overwrite: bool,
    /// Print one JSON object per text, with the seed, in place of the text; batches always do
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub step: StepArgs,
    /// Longest prompt and response together [default: what the models were made for]
    #[arg(long, value_name = "N", help_heading = "Device", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_model_len: Option<u32>,
}

#[derive(Args)]
pub(super) struct ChatArgs {
    #[command(flatten)]
    pub models: ChatModelArgs,
    /// Roles that read the conversation through their chat template: all, none, or a list of base,expert,anti-expert
    /// [default: expert, the published setting]
    #[arg(long, value_name = "ROLES", help_heading = "Prompt", num_args = 0..=1, default_missing_value = "expert")]
    pub chat: Option<String>,
    /// System message of the roles with a chat template
    #[arg(long, value_name = "TEXT", help_heading = "Prompt", allow_hyphen_values = true)]
    pub system_prompt: Option<String>,
    #[command(flatten)]
    pub sampling: SamplingFields,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Longest conversation in tokens [default: 4096, or what the models were made for]
    #[arg(long, value_name = "N", help_heading = "Device", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_model_len: Option<u32>,
}

#[derive(Args)]
pub(super) struct DemoArgs {
    /// A question of your own, in place of the tour
    pub question: Option<String>,
    /// Weight of expert - anti-expert, from -1000 to 1000
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_hyphen_values = true)]
    pub alpha: f32,
    /// Print the results as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Write the three models as Hugging Face directories into DIR, and do nothing else
    #[arg(long, value_name = "DIR", conflicts_with_all = ["question", "json"])]
    pub save: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Args)]
pub(super) struct CompatArgs {
    #[command(flatten)]
    pub models: ChatModelArgs,
    /// Roles whose prompt goes through their chat template in the first-token check: all, none, or a list; bare:
    /// expert [default: expert, if it has a template]
    #[arg(long, value_name = "ROLES", num_args = 0..=1, default_missing_value = "expert")]
    pub chat: Option<String>,
    /// Print the report as one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub(super) struct DevicesArgs {
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub kernels: KernelArgs,
}

#[derive(Args)]
pub(super) struct KernelsArgs {
    /// What they run on, such as sm_90: cards of this generation, from this one on; repeatable
    #[arg(long, value_name = "ARCH", required = true, value_delimiter = ',', value_parser = str::parse::<Arch>)]
    pub arch: Vec<Arch>,
    /// Where they go: a file for each module and ARCH
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// NVRTC [default: looked for, in site-packages too]
    #[arg(long, value_name = "PATH")]
    pub nvrtc: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Run every op of every backend against the CPU's plain form; exit code 5 where one fails
    #[arg(long)]
    pub self_test: bool,
    /// Of the self-test run one of so many cases: where each takes long, as under a sanitizer
    #[arg(long, value_name = "N", requires = "self_test", value_parser = clap::value_parser!(u16).range(1..))]
    pub self_test_every: Option<u16>,
    #[command(flatten)]
    pub models: ChatModelArgs,
    /// Look at this backend alone
    #[arg(long, value_name = "NAME", value_enum, default_value_t)]
    pub backend: Backend,
    #[command(flatten)]
    pub kernels: KernelArgs,
}

/// Models by directory, or by the shape of published ones.
#[derive(Args, Default)]
pub(super) struct ShapedArgs {
    #[command(flatten)]
    pub models: ModelArgs,
    /// In place of files: the shape of a published model, with weights made from a seed
    #[arg(long, value_name = "NAME", value_parser = shapes(), conflicts_with_all = ["base", "demo", "revision",
        "base_revision", "expert_revision", "anti_expert_revision", "id_policy", "allow_non_finite_weights"], requires = "shape_pair",
        hide_possible_values = true)]
    pub shape_base: Option<&'static Shape>,
    /// The same for expert and anti-expert
    #[arg(long, value_name = "NAME", value_parser = shapes(), conflicts_with_all = ["expert", "anti_expert", "demo"], requires = "shape_base")]
    pub shape_pair: Option<&'static Shape>,
}

#[derive(Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    pub models: ShapedArgs,
    /// Tokens of the prompt, tokens produced, and texts at a time; repeatable [default: 8,512 512,8 8,8, and 8,64 with 1,
    /// 4, 16 and 64 texts]
    #[arg(long, value_name = "PROMPT,OUTPUT[,BATCH]", help_heading = "Measurement", value_parser = setting)]
    pub setting: Vec<Setting>,
    /// Runs of each setting, base and trio in turn; medians count [default: 5, with --quick 3]
    #[arg(long, value_name = "N", help_heading = "Measurement", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub runs: Option<u16>,
    /// For a look: texts an eighth as long, and at most 16 at a time
    #[arg(long, help_heading = "Measurement", conflicts_with = "setting")]
    pub quick: bool,
    /// In place of the comparison, the time of each kernel in one run of the trio: cuda only. They run one after the
    /// other then, so all together take longer than a step
    #[arg(long, help_heading = "Measurement", conflicts_with = "json")]
    pub timeline: bool,
    /// Print the results as one JSON object
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    pub models: ShapedArgs,
    /// Longest prompt and response together [default: 4096, or what the models were made for]
    #[arg(long, value_name = "N", help_heading = "Size", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_model_len: Option<u32>,
    /// Texts at a time
    #[arg(long, value_name = "N", help_heading = "Size", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=MAX_SLOTS as i64))]
    pub max_num_seqs: u16,
    /// Prompt tokens that each model takes in a step, beside the texts under way [default: 256]
    #[arg(long, value_name = "N", help_heading = "Size", value_parser = clap::value_parser!(u16).range(1..=MAX_PREFILL_ROWS as i64))]
    pub chunked_prefill_size: Option<u16>,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Tokens of a prompt, tokens produced, texts at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Setting {
    pub prompt: usize,
    pub output: usize,
    pub batch: usize,
}

#[derive(Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// `--backend`.
#[derive(ValueEnum, Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) enum Backend {
    #[default]
    Auto,
    Cuda,
    Wgpu,
    Cpu,
}

impl From<Backend> for BackendChoice {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Auto => BackendChoice::Auto,
            Backend::Cuda => BackendChoice::Cuda,
            Backend::Wgpu => BackendChoice::Wgpu,
            Backend::Cpu => BackendChoice::Cpu,
        }
    }
}

/// `--kv-cache-dtype`.
#[derive(ValueEnum, Clone, Copy, Default)]
pub(super) enum KvDtype {
    #[default]
    Auto,
    F16,
    Bf16,
    F32,
}

impl KvDtype {
    /// None for each checkpoint's own.
    pub(super) fn dtype(self) -> Option<Dtype> {
        match self {
            KvDtype::Auto => None,
            KvDtype::F16 => Some(Dtype::F16),
            KvDtype::Bf16 => Some(Dtype::Bf16),
            KvDtype::F32 => Some(Dtype::F32),
        }
    }
}

fn shapes() -> impl TypedValueParser<Value = &'static Shape> {
    let find =
        |name: String| SHAPES.iter().find(|shape| shape.name == name).expect("a possible value is a shape's name");
    PossibleValuesParser::new(SHAPES.iter().map(|shape| shape.name)).map(find)
}

/// Most tokens of a setting's prompt, and most it produces: more than any model's positions.
const MAX_SETTING_TOKENS: usize = 1 << 24;
// Sums over all texts of a setting are within 32 bits.
const _: () = assert!(MAX_SLOTS as u64 * 2 * MAX_SETTING_TOKENS as u64 <= u32::MAX as u64);

fn setting(text: &str) -> Result<Setting, String> {
    let form = || format!("{text:?} is not PROMPT,OUTPUT or PROMPT,OUTPUT,BATCH");
    let numbers = text.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>().map_err(|_| form())?;
    let (prompt, output, batch) = match numbers[..] {
        [prompt, output] => (prompt, output, 1),
        [prompt, output, batch] => (prompt, output, batch),
        _ => return Err(form()),
    };
    // The first token ends the prompt's time; a rate needs one more.
    if prompt < 1 || output < 2 || !(1..=MAX_SLOTS).contains(&batch) {
        return Err(format!("{text:?}: at least 1 token of prompt, 2 of output, and 1 to {MAX_SLOTS} texts"));
    }
    if prompt.max(output) > MAX_SETTING_TOKENS {
        return Err(format!("{text:?}: at most {MAX_SETTING_TOKENS} tokens of prompt and of output"));
    }
    Ok(Setting { prompt, output, batch })
}

/// A number of bytes as vLLM reads it: k, m, g and t are powers of 1000 and may follow a fraction, K, M, G and T powers of
/// 1024.
fn n_bytes(text: &str) -> Result<u64, String> {
    let form = || format!("{text:?} is not a number of bytes, such as 2000000000, 1.5g (10^9) or 2G (2^30)");
    let suffix = text.chars().last().and_then(|last| "kmgt".find(last.to_ascii_lowercase()).map(|at| (last, at)));
    let Some((suffix, power)) = suffix else { return text.parse().map_err(|_| form()) };
    let (number, power) = (&text[..text.len() - 1], power as u32 + 1);
    if suffix.is_ascii_uppercase() {
        let whole: u64 = number.parse().map_err(|_| form())?;
        return whole.checked_mul(1024u64.pow(power)).ok_or_else(form);
    }
    let plain = number.starts_with(|first: char| first.is_ascii_digit()) && !number.contains(['e', 'E', '+', '-']);
    let bytes = number.parse::<f64>().ok().filter(|_| plain).ok_or_else(form)? * 1000f64.powi(power as i32);
    if bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(form()) }
}

fn id_policy(text: &str) -> Result<(u32, IdPolicy), String> {
    let form = || format!("{text:?} is not ID=delta, ID=zero or ID=ban");
    let (id, policy) = text.split_once('=').ok_or_else(form)?;
    Ok((id.parse().map_err(|_| form())?, policy.parse().map_err(|_| form())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_as_vllm_reads_them() {
        let right = [("0", 0), ("123", 123), ("1k", 1_000), ("1K", 1_024), ("25.6k", 25_600), ("2m", 2_000_000)];
        let large = [("1.5g", 1_500_000_000), ("2G", 2 << 30), ("3T", 3 << 40), ("1t", 1_000_000_000_000)];
        for (text, bytes) in right.into_iter().chain(large) {
            assert_eq!(n_bytes(text), Ok(bytes), "{text}");
        }
        let wrong =
            ["", "k", "G", "-1", "-1k", "1.5G", "1.5", "1e3", "1e3k", "2GB", "2 G", "2Gi", "infk", "nank", "0x10", "é"];
        for text in wrong.into_iter().chain(["18446744073709551616", "99999999T", "99999999t"]) {
            assert!(n_bytes(text).is_err(), "{text}");
        }
    }
}
