//! What was written on the command line, as clap reads it. Names follow llama.cpp, transformers and vLLM.

use super::fields::RequestFields;
use crate::backend::Dtype;
use crate::engine::worker::BackendChoice;
use crate::text::vocabulary::IdPolicy;
use clap::{Args, Parser, Subcommand, ValueEnum};
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
    /// Say whether three models fit together; exit code 4 where they do not
    Compat(CompatArgs),
    /// List backends and adapters of this machine
    Devices(DevicesArgs),
    /// Describe this machine, and check the kernels on it
    Doctor(DoctorArgs),
}

/// Which models, and what is agreed about them.
#[derive(Args, Default)]
#[command(next_help_heading = "Models")]
pub(super) struct ModelArgs {
    /// Directory of the large model, in the Hugging Face layout
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Directory of the small tuned model; the base stands in for a missing one
    #[arg(long, value_name = "DIR")]
    pub expert: Option<PathBuf>,
    /// Directory of the small untuned model; the base stands in for a missing one
    #[arg(long, value_name = "DIR")]
    pub anti_expert: Option<PathBuf>,
    /// Use the three small models of `proxytune demo`
    #[arg(long, conflicts_with_all = ["base", "expert", "anti_expert"])]
    pub demo: bool,
    /// Chat template for every role, in place of the models' own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// What becomes of a token id that the models define differently: delta (use the difference), zero (base alone
    /// decides) or ban (never sampled); repeatable
    #[arg(long, value_name = "ID=POLICY", value_parser = id_policy)]
    pub id_policy: Vec<(u32, IdPolicy)>,
}

/// Where the models run.
#[derive(Args, Default)]
#[command(next_help_heading = "Device")]
pub(super) struct DeviceArgs {
    /// auto: a real GPU if there is one, else the CPU; software adapters only with wgpu
    #[arg(long, value_name = "NAME", value_enum, default_value_t)]
    pub backend: Backend,
    /// Number of the adapter, as `proxytune devices` lists them
    #[arg(long, value_name = "N")]
    pub device: Option<usize>,
    /// Threads of the CPU backend [default: all]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Type of cached keys and values; auto: each checkpoint's own
    #[arg(long, value_name = "TYPE", value_enum, default_value_t)]
    pub kv_cache_dtype: KvDtype,
}

#[derive(Args)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    pub models: ModelArgs,
    #[command(flatten)]
    pub request: RequestFields,
    /// One JSON object a line: {"id": .., "prompt": .., any flag of a request by its snake_case name}; flags given
    /// here are the defaults of the lines; `-` is standard input
    #[arg(short, long, value_name = "IN.jsonl", help_heading = "Batch")]
    pub input_file: Option<PathBuf>,
    /// Where the results of a batch go, one a line in the order of the input [default: standard output, also `-`]
    #[arg(short, long, value_name = "OUT.jsonl", requires = "input_file", help_heading = "Batch")]
    pub output_file: Option<PathBuf>,
    /// Print one JSON object per text in place of the text; batches always do
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Longest prompt and response together [default: what the models were made for]
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
    pub models: ModelArgs,
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
}

#[derive(Args)]
pub(super) struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Run every op of every backend against the CPU's plain form; exit code 5 where one fails
    #[arg(long)]
    pub self_test: bool,
    #[command(flatten)]
    pub models: ModelArgs,
    /// Look at this backend alone
    #[arg(long, value_name = "NAME", value_enum, default_value_t)]
    pub backend: Backend,
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

fn id_policy(text: &str) -> Result<(u32, IdPolicy), String> {
    let form = || format!("{text:?} is not ID=delta, ID=zero or ID=ban");
    let (id, policy) = text.split_once('=').ok_or_else(form)?;
    Ok((id.parse().map_err(|_| form())?, policy.parse().map_err(|_| form())?))
}
