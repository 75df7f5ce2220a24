//! What a caller asks for: a [`Draft`] that anyone fills in, and the [`Request`] that it becomes once every field is
//! within its limits.

use super::limits::Limits;
use super::scheduler::TenantId;
use crate::Result;
use std::borrow::Borrow;
use std::ops::Deref;
use std::time::Duration;

/// Largest |alpha|.
pub const MAX_ALPHA: f32 = 1000.0;
/// Largest |bias| of a logit_bias entry.
pub const MAX_BIAS: f32 = 100.0;
/// Stop strings per request.
pub const MAX_STOP_STRINGS: usize = 16;
/// Bytes of one stop string.
pub const MAX_STOP_BYTES: usize = 1024;
/// Banned words of a request, and ids banned at its beginning.
pub const MAX_BAD_WORDS: usize = 1024;
/// Tokens of a banned word.
pub const MAX_BAD_WORD_TOKENS: usize = 64;
/// The prompts' names in errors, in order of roles.
pub(super) const PROMPT_FIELDS: [&str; 3] = ["prompt", "expert_prompt", "anti_expert_prompt"];
/// Samples per prompt.
pub const MAX_N: u32 = 128;

/// How the next token is drawn. Defaults: alpha 1, greedy, everything else neutral, 256 tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Weight of expert - anti-expert.
    pub alpha: f32,
    /// 0: greedy.
    pub temperature: f32,
    /// 0 or -1: off.
    pub top_k: i64,
    /// (0, 1]; 1: off.
    pub top_p: f32,
    /// [0, 1]; 0: off.
    pub min_p: f32,
    /// > 0; 1: neutral.
    pub repetition_penalty: f32,
    /// [-2, 2]; 0: neutral.
    pub presence_penalty: f32,
    /// [-2, 2]; 0: neutral.
    pub frequency_penalty: f32,
    /// Added to the combined score of an id.
    pub logit_bias: Vec<(u32, f32)>,
    /// Philox key; drawn from the system where absent.
    pub seed: Option<u64>,
    /// Most tokens produced, at least 1.
    pub max_tokens: u32,
    /// Stop ids are not sampled before it.
    pub min_tokens: u32,
    /// Stop ids do not end the text.
    pub ignore_eos: bool,
    /// Ids that end the text, beside the trio's own.
    pub stop_token_ids: Vec<u32>,
    /// Ids must be in the base's own nucleus. 1: off.
    pub base_top_p: f32,
    /// Ids must have at least this share of the base's largest probability. 0: off.
    pub base_min_p: f32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            alpha: 1.0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            max_tokens: 256,
            min_tokens: 0,
            ignore_eos: false,
            stop_token_ids: Vec::new(),
            base_top_p: 1.0,
            base_min_p: 0.0,
        }
    }
}

impl Sampling {
    /// True where `counts` must be kept for the sequence.
    pub fn is_penalised(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// Which models a text comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// base + alpha * (expert - anti-expert).
    #[default]
    Combined,
    /// The base: what alpha 0 gives, bit for bit, without prompts for the pair.
    BaseOnly,
    /// The expert, as if it were the only model.
    ExpertOnly,
}

impl Mode {
    /// The roles whose prompts it reads: 0 the base, 1 the expert, 2 the anti-expert.
    pub fn roles(self) -> &'static [usize] {
        match self {
            Mode::Combined => &[0, 1, 2],
            Mode::BaseOnly => &[0],
            Mode::ExpertOnly => &[1],
        }
    }

    /// The role whose prompt is the text's own, where one counts: for penalties and for usage.
    pub fn main_role(self) -> usize {
        self.roles()[0]
    }
}

/// One prompt and what to make of it, not checked yet. Token lists per role: base, expert, anti-expert.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// Prompt of each role that `mode` reads; the response prefix, if any, is already at their ends.
    pub prompts: [Vec<u32>; 3],
    /// Which models it comes from.
    pub mode: Mode,
    /// How to draw.
    pub sampling: Sampling,
    /// Texts to produce: they share seed and prompts, and differ by their index in the Philox counter.
    pub n: u32,
    /// Strings before which a text is cut.
    pub stop: Vec<String>,
    /// Token sequences that may not appear in a response.
    pub bad_words: Vec<Vec<u32>>,
    /// Ids that may not be the first of a response.
    pub bad_first_ids: Vec<u32>,
    /// Top entries in the record of every step; absent: no record.
    pub record: Option<usize>,
    /// Whose request it is: tenants get equal shares of a busy engine, and see nothing of each other's prompts.
    pub tenant: TenantId,
    /// How long it may wait for its first step.
    pub queue_timeout: Option<Duration>,
    /// How long it may take in all.
    pub timeout: Option<Duration>,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            prompts: Default::default(),
            mode: Mode::default(),
            sampling: Sampling::default(),
            n: 1,
            stop: Vec::new(),
            bad_words: Vec::new(),
            bad_first_ids: Vec::new(),
            record: None,
            tenant: TenantId::default(),
            queue_timeout: None,
            timeout: None,
        }
    }
}

impl Draft {
    /// The weight of expert - anti-expert that the device sees.
    pub fn alpha(&self) -> f32 {
        if self.mode == Mode::Combined { self.sampling.alpha } else { 0.0 }
    }

    /// The roles whose rows are computed: with alpha 0 the pair's are not read.
    pub fn computed_roles(&self) -> &'static [usize] {
        if self.mode == Mode::Combined && self.sampling.alpha == 0.0 {
            Mode::BaseOnly.roles()
        } else {
            self.mode.roles()
        }
    }

    /// Tokens of its longest prompt and a response at its longest.
    pub fn n_tokens(&self) -> usize {
        let longest = self.mode.roles().iter().map(|&role| self.prompts[role].len()).max().unwrap_or(0);
        longest + self.sampling.max_tokens as usize
    }

    /// Ids that end a text: the trio's, unless EOS is ignored, and the request's own; sorted.
    pub fn stop_ids(&self, trio_stop_ids: &[u32]) -> Vec<u32> {
        let of_trio = if self.sampling.ignore_eos { &[] } else { trio_stop_ids };
        let mut ids = [of_trio, &self.sampling.stop_token_ids].concat();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// A draft that was held against limits. Its fields can be read, not changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Request(Draft);

impl Request {
    /// Checks every field; an error names the one that is out of range, and its limit.
    pub fn new(draft: Draft, limits: &Limits) -> Result<Self> {
        limits.check(&draft)?;
        Ok(Self(draft))
    }

    /// The fields, to make another of.
    pub fn into_draft(self) -> Draft {
        self.0
    }
}

impl Borrow<Draft> for Request {
    fn borrow(&self) -> &Draft {
        &self.0
    }
}

impl Deref for Request {
    type Target = Draft;

    fn deref(&self) -> &Draft {
        &self.0
    }
}
