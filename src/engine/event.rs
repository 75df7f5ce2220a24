//! What comes back on a request's channel.

use super::request::Request;
use crate::Error;
use crate::backend::params::StepRecord;

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop id or a stop string.
    Stop,
    /// max_tokens.
    Length,
    /// See [`Completion::error`].
    Error,
}

impl FinishReason {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Error => "error",
        }
    }
}

/// Milliseconds and counts of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Prompt tokens of the base, or of the expert where it runs alone.
    pub prompt_n: usize,
    /// From admission to the first token.
    pub prompt_ms: f64,
    /// Tokens produced.
    pub predicted_n: usize,
    /// From the first token to the last.
    pub predicted_ms: f64,
}

/// A finished text.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The text, cut before a stop string: all the texts of its tokens, and what the end set free.
    pub text: String,
    /// Ids drawn, a final stop id included.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Set where `finish_reason` is `Error`.
    pub error: Option<Error>,
    /// The seed used.
    pub seed: u64,
    /// Prompt tokens per role.
    pub prompt_tokens: [usize; 3],
    /// Milliseconds.
    pub timings: Timings,
    /// One per token, where asked for.
    pub record: Vec<StepRecord>,
}

impl Completion {
    /// The result of a request that never ran.
    pub fn failed(request: &Request, seed: u64, error: Error) -> Self {
        let prompt_tokens = request.prompts.each_ref().map(Vec::len);
        Self {
            text: String::new(),
            token_ids: Vec::new(),
            finish_reason: FinishReason::Error,
            error: Some(error),
            seed,
            prompt_tokens,
            timings: Timings { prompt_n: prompt_tokens[request.mode.main_role()], ..Timings::default() },
            record: Vec::new(),
        }
    }
}

/// An event of one of a request's samples.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A token was drawn; `text` is what can be shown by now, possibly nothing.
    Token {
        /// Which sample, from 0.
        sample: usize,
        /// The id.
        id: u32,
        /// Text to append.
        text: String,
    },
    /// The sample has ended; its last event.
    Done {
        /// Which sample, from 0.
        sample: usize,
        /// The whole result.
        completion: Box<Completion>,
    },
}
