//! What a caller asks for, checked once: every field's range is tested here, before any device work.

use crate::backend::params::{MAX_BIASES, MAX_RECORD_TOP, MAX_STOP_IDS};
use crate::{Error, Result};

/// Largest |alpha|.
pub const MAX_ALPHA: f32 = 1000.0;
/// Largest |bias| of a logit_bias entry.
pub const MAX_BIAS: f32 = 100.0;
/// Stop strings per request.
pub const MAX_STOP_STRINGS: usize = 16;
/// Bytes of one stop string.
pub const MAX_STOP_BYTES: usize = 1024;
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
    /// Checks every range; `n_vocab` bounds the ids.
    pub fn validate(&self, n_vocab: usize) -> Result<()> {
        within("alpha", self.alpha, -MAX_ALPHA..=MAX_ALPHA)?;
        within("temperature", self.temperature, 0.0..=f32::MAX)?;
        if self.top_k < -1 {
            return Err(Error::argument("top_k", format!("{} is not -1, 0 (both off) or positive", self.top_k)));
        }
        share("top_p", self.top_p)?;
        share("base_top_p", self.base_top_p)?;
        within("min_p", self.min_p, 0.0..=1.0)?;
        within("base_min_p", self.base_min_p, 0.0..=1.0)?;
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            let message = format!("{} is not a finite number above 0", self.repetition_penalty);
            return Err(Error::argument("repetition_penalty", message));
        }
        within("presence_penalty", self.presence_penalty, -2.0..=2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0..=2.0)?;
        at_most("logit_bias", self.logit_bias.len(), MAX_BIASES, "entries")?;
        for &(id, bias) in &self.logit_bias {
            id_within("logit_bias", id, n_vocab)?;
            within("logit_bias", bias, -MAX_BIAS..=MAX_BIAS)?;
        }
        let mut biased: Vec<u32> = self.logit_bias.iter().map(|&(id, _)| id).collect();
        biased.sort_unstable();
        if let Some(twice) = biased.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::argument("logit_bias", format!("id {} is named twice", twice[0])));
        }
        if self.max_tokens == 0 {
            return Err(Error::argument("max_tokens", "0 is not at least 1"));
        }
        if self.min_tokens > self.max_tokens {
            let message = format!("{} is above max_tokens = {}", self.min_tokens, self.max_tokens);
            return Err(Error::argument("min_tokens", message));
        }
        self.stop_token_ids.iter().try_for_each(|&id| id_within("stop_token_ids", id, n_vocab))
    }

    /// True where `counts` must be kept for the sequence.
    pub fn is_penalised(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// One text to produce. Token lists per role: base, expert, anti-expert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// Prompt of each role; the response prefix, if any, is already at their ends.
    pub prompts: [Vec<u32>; 3],
    /// How to draw.
    pub sampling: Sampling,
    /// Which of `n` samples of one prompt this is: the Philox counter.
    pub sample_index: u32,
    /// Strings before which the text is cut.
    pub stop: Vec<String>,
    /// Token sequences that may not appear in the response.
    pub bad_words: Vec<Vec<u32>>,
    /// Ids that may not be the first of the response.
    pub bad_first_ids: Vec<u32>,
    /// Top entries in the record of every step; absent: no record.
    pub record: Option<usize>,
}

impl Request {
    /// Ids that end the text: the trio's, unless EOS is ignored, and the request's own; sorted.
    pub fn stop_ids(&self, trio_stop_ids: &[u32]) -> Vec<u32> {
        let of_trio = if self.sampling.ignore_eos { &[] } else { trio_stop_ids };
        let mut ids = [of_trio, &self.sampling.stop_token_ids].concat();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Checks every field that does not depend on the engine's size: `n_vocab` bounds the ids, `trio_stop_ids` count
    /// towards the stop ids' limit.
    pub fn validate(&self, n_vocab: usize, trio_stop_ids: &[u32]) -> Result<()> {
        self.sampling.validate(n_vocab)?;
        for (name, prompt) in PROMPT_FIELDS.into_iter().zip(&self.prompts) {
            if prompt.is_empty() {
                return Err(Error::argument(name, "holds no token; give it text, or use a tokenizer that adds a BOS"));
            }
        }
        at_most("stop_token_ids", self.stop_ids(trio_stop_ids).len(), MAX_STOP_IDS, "ids, EOS ids included")?;
        at_most("stop", self.stop.len(), MAX_STOP_STRINGS, "strings")?;
        for stop in &self.stop {
            if stop.is_empty() {
                return Err(Error::argument("stop", "an empty string would stop at once"));
            }
            at_most("stop", stop.len(), MAX_STOP_BYTES, "bytes")?;
        }
        if let Some(top) = self.record {
            at_most("record", top, MAX_RECORD_TOP, "top entries")?;
        }
        Ok(())
    }
}

fn within(param: &str, value: f32, range: std::ops::RangeInclusive<f32>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let (low, high) = (range.start(), range.end());
    let bounds = if *high == f32::MAX { format!("a finite number >= {low}") } else { format!("in [{low}, {high}]") };
    Err(Error::argument(param, format!("{value} is not {bounds}")))
}

fn share(param: &str, value: f32) -> Result<()> {
    if value > 0.0 && value <= 1.0 { Ok(()) } else { Err(Error::argument(param, format!("{value} is not in (0, 1]"))) }
}

fn at_most(param: &str, count: usize, limit: usize, unit: &str) -> Result<()> {
    if count <= limit { Ok(()) } else { Err(Error::argument(param, format!("{count} {unit}; at most {limit}"))) }
}

fn id_within(param: &str, id: u32, n_vocab: usize) -> Result<()> {
    if (id as usize) < n_vocab {
        return Ok(());
    }
    Err(Error::argument(param, format!("id {id} is outside the vocabulary of {n_vocab} ids")))
}
