//! A finished text as JSON.

use crate::Error;
use crate::backend::params::StepRecord;
use crate::engine::event::Completion;
use crate::engine::request::Request;
use crate::engine::trio::Trio;
use serde::Serialize;
use serde_json::Value;

/// One result.
#[derive(Serialize)]
pub(super) struct ResultJson<'a> {
    id: &'a Value,
    index: u32,
    text: &'a str,
    token_ids: &'a [u32],
    finish_reason: &'static str,
    error: Option<ErrorJson>,
    seed: u64,
    usage: Usage,
    timings: Timings,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<Vec<StepJson>>,
}

/// What went wrong with a request.
#[derive(Serialize)]
pub(super) struct ErrorJson {
    #[serde(rename = "type")]
    kind: &'static str,
    pub(super) message: String,
    param: Option<String>,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_by_role: ByRole<usize>,
}

#[derive(Serialize)]
struct ByRole<T> {
    base: T,
    expert: T,
    anti_expert: T,
}

#[derive(Serialize)]
struct Timings {
    prompt_n: usize,
    prompt_ms: f64,
    predicted_n: usize,
    predicted_ms: f64,
    /// Tokens after the first over the time they took; none where there is one token.
    predicted_per_second: Option<f64>,
}

/// A number under each distribution.
#[derive(Serialize)]
struct Four<T> {
    base: T,
    /// None where the pair was not run, as all of the pair's numbers.
    expert: Option<T>,
    anti_expert: Option<T>,
    combined: T,
}

#[derive(Serialize)]
struct StepJson {
    position: u32,
    id: u32,
    token: String,
    logprob: Four<f32>,
    rank: Four<u32>,
    entropy: Four<f32>,
    kl_combined_base: f32,
    kl_expert_anti_expert: Option<f32>,
    cross_entropy: Option<f32>,
    alpha: f32,
    base_argmax: u32,
    base_argmax_token: String,
    argmax_changed: bool,
    top: Vec<TopJson>,
}

#[derive(Serialize)]
struct TopJson {
    id: u32,
    token: String,
    z_base: f32,
    z_expert: Option<f32>,
    z_anti_expert: Option<f32>,
    s: f32,
}

/// What a result has to know of its request.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    recorded: bool,
    main_role: usize,
}

impl Asked {
    /// By this request.
    pub(super) fn by(request: &Request) -> Self {
        Self { recorded: request.record.is_some(), main_role: request.mode.main_role() }
    }
}

impl<'a> ResultJson<'a> {
    /// Result number `index` of the request named `id`.
    pub(super) fn new(id: &'a Value, index: u32, done: &'a Completion, asked: Asked, trio: &Trio) -> Self {
        let [base, expert, anti_expert] = done.prompt_tokens;
        let prompt_tokens = done.prompt_tokens[asked.main_role];
        let completion_tokens = done.token_ids.len();
        Self {
            id,
            index,
            text: &done.text,
            token_ids: &done.token_ids,
            finish_reason: done.finish_reason.name(),
            error: done.error.as_ref().map(ErrorJson::new),
            seed: done.seed,
            usage: Usage {
                prompt_tokens,
                completion_tokens,
                total_tokens: prompt_tokens + completion_tokens,
                prompt_tokens_by_role: ByRole { base, expert, anti_expert },
            },
            timings: Timings { prompt_n: prompt_tokens, ..Timings::new(done) },
            record: asked.recorded.then(|| done.record.iter().map(|step| StepJson::new(step, trio)).collect()),
        }
    }
}

impl ErrorJson {
    /// The error as results show it.
    pub(super) fn new(error: &Error) -> Self {
        Self { kind: error.kind(), message: error.to_string(), param: error.param().map(str::to_string) }
    }
}

impl Timings {
    fn new(done: &Completion) -> Self {
        let crate::engine::event::Timings { prompt_n, prompt_ms, predicted_n, predicted_ms } = done.timings;
        let predicted_per_second = (predicted_n > 1).then(|| (predicted_n - 1) as f64 / predicted_ms * 1e3);
        Self { prompt_n, prompt_ms, predicted_n, predicted_ms, predicted_per_second }
    }
}

impl<T> Four<T> {
    fn of(step: &StepRecord, [base, expert, anti_expert, combined]: [T; 4]) -> Self {
        Self { base, expert: of_pair(step, expert), anti_expert: of_pair(step, anti_expert), combined }
    }
}

impl StepJson {
    fn new(step: &StepRecord, trio: &Trio) -> Self {
        let token = |id: u32| token_text(trio, id);
        let top = step.top[..step.n_top as usize].iter().map(|top| TopJson {
            id: top.id,
            token: token(top.id),
            z_base: top.z_base,
            z_expert: of_pair(step, top.z_expert),
            z_anti_expert: of_pair(step, top.z_anti),
            s: top.score,
        });
        Self {
            position: step.position,
            id: step.chosen,
            token: token(step.chosen),
            logprob: Four::of(step, step.logprob),
            rank: Four::of(step, step.rank),
            entropy: Four::of(step, step.entropy),
            kl_combined_base: step.kl_combined_base,
            kl_expert_anti_expert: of_pair(step, step.kl_expert_anti),
            cross_entropy: of_pair(step, step.cross_entropy),
            alpha: step.alpha,
            base_argmax: step.base_argmax,
            base_argmax_token: token(step.base_argmax),
            argmax_changed: step.base_argmax != step.combined_argmax,
            top: top.collect(),
        }
    }
}

/// Whether expert and anti-expert were run. Where they have no weight they are not, and what the device records for them
/// are the base's numbers.
pub(super) fn has_pair(step: &StepRecord) -> bool {
    step.alpha != 0.0
}

fn of_pair<T>(step: &StepRecord, number: T) -> Option<T> {
    has_pair(step).then_some(number)
}

/// What an id stands for, special tokens by their name; invalid UTF-8 replaced.
pub(super) fn token_text(trio: &Trio, id: u32) -> String {
    String::from_utf8_lossy(trio.tokenizers()[0].bytes_of(id).unwrap_or_default()).into_owned()
}
