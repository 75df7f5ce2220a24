//! `compat`: whether three models fit together, and what a person should know of them before anything is loaded.

use super::args::CompatArgs;
use super::open;
use super::output::{self, Stdout, Style};
use super::result::ErrorJson;
use crate::checkpoint::{Checkpoint, GenerationConfig, ModelConfig, Rope};
use crate::engine::trio::Models;
use crate::text::prompt::{FirstToken, PromptRequest, RoleText, Roles};
use crate::text::vocabulary::{Comparison, ROLES};
use crate::{Error, Result};
use serde::Serialize;

/// The prompt that the first-token check continues.
const PROBE: &str = "Name three uses of copper.";

pub(super) fn run(args: &CompatArgs) -> Result<()> {
    let models = args.models.describe()?;
    let report = Report::new(&models, args)?;
    let mut out = Stdout::new();
    if args.json {
        out.json(&report)?;
    } else {
        out.line(&report.text(Style::of_stdout()))?;
    }
    report.verdict
}

#[derive(Serialize)]
struct Report {
    compatible: bool,
    error: Option<ErrorJson>,
    roles: [Role; 3],
    vocabulary: Option<Comparison>,
    first_tokens: Vec<FirstToken>,
    warnings: Vec<String>,
    #[serde(skip)]
    verdict: Result<()>,
}

/// What one role brings.
#[derive(Serialize)]
struct Role {
    role: &'static str,
    model: String,
    family: String,
    layers: usize,
    width: usize,
    parameters: usize,
    weight_bytes: usize,
    weight_dtype: String,
    max_positions: usize,
    /// Each kind of rotary positions among the layers.
    rotary: Vec<Rotary>,
    layers_without_rotary: usize,
    /// Each width of window among the layers.
    windows: Vec<Window>,
    logits_width: usize,
    tokenizer_ids: usize,
    padding: usize,
    bos: Option<String>,
    adds_bos: bool,
    eos: Option<String>,
    chat_template: Option<String>,
    in_chat: bool,
    /// The publisher's wishes: shown, not applied.
    generation_config: GenerationConfig,
}

#[derive(Serialize, PartialEq)]
struct Rotary {
    theta: f64,
    scaling: &'static str,
    factor: f64,
}

/// Layers that see so many positions.
#[derive(Serialize)]
struct Window {
    positions: u32,
    layers: usize,
}

impl Report {
    fn new(models: &Models, args: &CompatArgs) -> Result<Self> {
        let texts = models.role_texts();
        let chat = match &args.chat {
            Some(roles) => roles.parse()?,
            None if matches!(texts[1].template, Ok(Some(_))) => Roles::EXPERT,
            None => Roles::NONE,
        };
        let comparison = models.compare(&args.models.named.id_policy);
        let verdict =
            comparison.as_ref().map_err(Error::clone).and_then(|comparison| comparison.vocabulary().map(|_| ()));
        let prompt = PromptRequest { text: PROBE.into(), chat, ..PromptRequest::default() };
        let mut warnings = open::warnings(models);
        if open::pair_is_one_model(models) {
            warnings.push("expert and anti-expert are one model: with one prompt their difference is nothing".into());
        }
        let first_tokens = prompt.first_tokens(&texts)?;
        if !first_tokens.iter().any(|first| first.agrees) {
            warnings.push("no response can begin with the same token in the three roles: see first token".into());
        }
        let checkpoints = models.checkpoint_of_role();
        let roles = [0, 1, 2].map(|i| Role::new(ROLES[i], checkpoints[i], &texts[i], chat.0[i]));
        let [base, expert, anti_expert] = roles;
        Ok(Self {
            compatible: verdict.is_ok(),
            error: verdict.as_ref().err().map(ErrorJson::new),
            roles: [base?, expert?, anti_expert?],
            vocabulary: comparison.ok(),
            first_tokens,
            warnings,
            verdict,
        })
    }

    fn text(&self, style: Style) -> String {
        let mut parts = vec![output::table(&self.role_rows())];
        if let Some(vocabulary) = &self.vocabulary {
            parts.push(vocabulary_text(vocabulary));
        }
        parts.push(output::table(&self.first_tokens.iter().map(first_token_row).collect::<Vec<_>>()));
        let from_vocabulary = self.vocabulary.iter().flat_map(|vocabulary| &vocabulary.warnings);
        let warnings: Vec<String> =
            self.warnings.iter().chain(from_vocabulary).map(|warning| format!("warning: {warning}")).collect();
        if !warnings.is_empty() {
            parts.push(warnings.join("\n"));
        }
        parts.push(match self.compatible {
            true => style.good("These models can be combined."),
            false => style.bad("These models cannot be combined."),
        });
        parts.join("\n\n")
    }

    fn role_rows(&self) -> Vec<Vec<String>> {
        let row = |name: &str, of: &dyn Fn(&Role) -> String| {
            [name.to_string()].into_iter().chain(self.roles.iter().map(of)).collect::<Vec<_>>()
        };
        let quoted = |token: &Option<String>| token.as_ref().map_or("none".into(), |token| format!("{token:?}"));
        vec![
            row("", &|r| r.role.into()),
            row("model", &|r| short_path(&r.model)),
            row("family", &|r| format!("{}, {} x {}", r.family, r.layers, r.width)),
            row("weights", &|r| format!("{:.1} M, {}", r.parameters as f64 / 1e6, r.weight_dtype)),
            row("positions", &|r| r.max_positions.to_string()),
            row("rotary", &Role::rotary_text),
            row("window", &Role::window_text),
            row("logits", &|r| format!("{}, {} padding", r.logits_width, r.padding)),
            row("token ids", &|r| r.tokenizer_ids.to_string()),
            row("BOS", &|r| format!("{}{}", quoted(&r.bos), if r.adds_bos { ", added" } else { "" })),
            row("EOS", &|r| quoted(&r.eos)),
            row("template", &|r| match (r.chat_template.is_some(), r.in_chat) {
                (true, true) => "yes, used here".into(),
                (true, false) => "yes, not used here".into(),
                (false, _) => "none".into(),
            }),
            row("suggests", &|r| suggestion(&r.generation_config)),
        ]
    }
}

impl Role {
    fn new(role: &'static str, checkpoint: &Checkpoint, text: &RoleText, in_chat: bool) -> Result<Self> {
        let (config, tokenizer) = (&checkpoint.config, text.tokenizer);
        let tensors = || checkpoint.tensors().map(|(_, tensor)| tensor);
        let mut dtypes: Vec<&str> = tensors().map(|tensor| tensor.dtype.name()).collect();
        dtypes.sort_unstable();
        dtypes.dedup();
        Ok(Self {
            role,
            model: checkpoint.name.clone(),
            family: format!("{:?}", config.family).to_lowercase(),
            layers: config.n_layers,
            width: config.d_model,
            parameters: tensors().map(|tensor| tensor.shape.iter().product::<usize>()).sum(),
            weight_bytes: tensors().map(|tensor| tensor.n_bytes).sum(),
            weight_dtype: dtypes.join("+"),
            max_positions: config.max_positions,
            rotary: rotary(config),
            layers_without_rotary: config.layers.iter().filter(|layer| layer.rope.is_none()).count(),
            windows: windows(config),
            logits_width: config.n_vocab,
            tokenizer_ids: tokenizer.n_ids(),
            padding: config.n_vocab.saturating_sub(tokenizer.n_ids()),
            bos: tokenizer.config().bos.clone(),
            adds_bos: tokenizer.adds_bos()?,
            eos: tokenizer.config().eos.clone(),
            chat_template: text.template.ok().flatten().map(|template| template.path().display().to_string()),
            in_chat,
            generation_config: checkpoint.generation.clone(),
        })
    }

    /// `theta 10000`, `theta 1000000, yarn x 16`, `theta 10000 and theta 1000000, linear x 8`.
    fn rotary_text(&self) -> String {
        let kind = |kind: &Rotary| match kind.scaling {
            "default" => format!("theta {}", kind.theta),
            scaling => format!("theta {}, {scaling} x {}", kind.theta, kind.factor),
        };
        let kinds = self.rotary.iter().map(kind).collect::<Vec<_>>().join(" and ");
        match self.layers_without_rotary {
            0 => kinds,
            n => format!("{kinds}, none in {n} of {} layers", self.layers),
        }
    }

    fn window_text(&self) -> String {
        let window = |window: &Window| match window.layers == self.layers {
            true => window.positions.to_string(),
            false => format!("{} in {} of {} layers", window.positions, window.layers, self.layers),
        };
        if self.windows.is_empty() {
            "none".into()
        } else {
            self.windows.iter().map(window).collect::<Vec<_>>().join(", ")
        }
    }
}

/// In the order of the layers.
fn rotary(config: &ModelConfig) -> Vec<Rotary> {
    let mut kinds = Vec::new();
    for Rope { theta, scaling } in config.layers.iter().filter_map(|layer| layer.rope) {
        let kind = Rotary { theta, scaling: scaling.name(), factor: scaling.factor() };
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

fn windows(config: &ModelConfig) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    for positions in config.layers.iter().map(|layer| layer.window).filter(|&window| window > 0) {
        match windows.iter_mut().find(|window| window.positions == positions) {
            Some(window) => window.layers += 1,
            None => windows.push(Window { positions, layers: 1 }),
        }
    }
    windows
}

fn vocabulary_text(vocabulary: &Comparison) -> String {
    let mut lines = vec![
        format!("shared ids     {} (the same bytes in all three; these are sampled)", vocabulary.n_shared),
        format!("partial ids    {} (not in all three; never sampled)", vocabulary.n_partial),
        format!("differing ids  {}", vocabulary.n_differing),
    ];
    for differing in &vocabulary.differing {
        let [base, expert, anti] = &differing.strings;
        let policy = differing.policy.map_or("no policy".into(), |policy| format!("{policy:?}").to_lowercase());
        lines.push(format!("  {}: {base:?} | {expert:?} | {anti:?}  ({policy})", differing.id));
    }
    let unlisted = vocabulary.n_differing - vocabulary.differing.len();
    if unlisted > 0 {
        lines.push(format!("  and {unlisted} more"));
    }
    for (index, stop) in vocabulary.stops.iter().enumerate() {
        let name = if index == 0 { "stop ids" } else { "" };
        let text = stop.text.as_ref().map_or(String::new(), |text| format!(" {text:?}"));
        // Which files say so is in the JSON.
        let named_by = ROLES.iter().filter(|role| stop.sources.iter().any(|s| s.starts_with(&format!("{role} "))));
        let named_by = named_by.copied().collect::<Vec<_>>().join(", ");
        let never = if stop.live { "" } else { "; never sampled" };
        lines.push(format!("{name:<13}  {}{text} ({named_by}{never})", stop.id));
    }
    lines.join("\n")
}

fn first_token_row(first: &FirstToken) -> Vec<String> {
    let id = |id: &Option<u32>| id.map_or("none".into(), |id| id.to_string());
    let says = if first.agrees { "the same" } else { "not the same" };
    let ids = first.ids.iter().map(id).collect::<Vec<_>>().join(", ");
    vec!["first token".into(), format!("{:?}", first.text), ids, says.into()]
}

/// The publisher's sampling values.
fn suggestion(generation: &GenerationConfig) -> String {
    let values = [
        ("T", generation.temperature),
        ("top-k", generation.top_k),
        ("top-p", generation.top_p),
        ("min-p", generation.min_p),
        ("rep", generation.repetition_penalty),
    ];
    let said: Vec<String> = values.iter().filter_map(|(name, value)| Some(format!("{name} {}", (*value)?))).collect();
    match (generation.do_sample, said.is_empty()) {
        (Some(false), true) => "greedy".into(),
        (_, true) => "nothing".into(),
        _ => said.join(" "),
    }
}

/// The end of a path, where it is long.
fn short_path(path: &str) -> String {
    const LONGEST: usize = 24;
    let n = path.chars().count();
    if n <= LONGEST { path.into() } else { format!("..{}", path.chars().skip(n - LONGEST + 2).collect::<String>()) }
}
