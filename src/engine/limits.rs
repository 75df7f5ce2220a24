//! What a request may ask for, of a trio or of a running engine, which may be narrower. Every field of a request is held
//! against these before any device work; the kernels trust what passes here.

use super::batch::Seat;
use super::request::{
    Draft, MAX_ALPHA, MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, MAX_BIAS, MAX_N, MAX_STOP_BYTES, MAX_STOP_STRINGS, Mode,
    PROMPT_FIELDS, Sampling,
};
use super::trio::Trio;
use crate::backend::params::{MAX_BIASES, MAX_RECORD_TOP, MAX_STOP_IDS};
use crate::{Error, Result};
use std::ops::RangeInclusive;
use std::time::Duration;

/// The bounds of a request. Per role: base, expert, anti-expert.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Ids that a response can hold, that a bias or a stop can name, are below it.
    pub n_ids: usize,
    /// Ids of a prompt are below it, per role: the rows of the model's embedding.
    pub n_rows: [usize; 3],
    /// Tokens of prompt and response together, per role.
    pub positions: [usize; 3],
    /// Ids that end a text unless it says otherwise; they count towards `max_stop_ids`.
    pub stop_ids: Vec<u32>,
    /// Stop ids of a request.
    pub max_stop_ids: usize,
    /// Entries of a logit_bias.
    pub max_biases: usize,
    /// Samples of a request.
    pub max_samples: u32,
    /// Whether there is room for penalties.
    pub penalties: bool,
    /// Top entries of a record; none where there is no room for records.
    pub record_top: Option<usize>,
    /// The pages of the pool; none where no engine runs yet.
    pub pages: Option<PageLimits>,
}

/// What a pool holds.
#[derive(Clone, Debug, PartialEq)]
pub struct PageLimits {
    /// Pages of the pool.
    pub n_pages: usize,
    /// Tokens in a page, per role.
    pub page_tokens: [usize; 3],
    /// Where each role's weights are: roles that share them share the pages of equal prompts.
    pub seats: [Seat; 3],
}

impl Trio {
    /// What a request to these models may ask for at most, whatever engine runs them.
    pub fn limits(&self) -> Limits {
        let models = self.models().checkpoint_of_role().map(|checkpoint| &checkpoint.config);
        Limits {
            n_ids: self.vocabulary().n_ids,
            n_rows: models.map(|model| model.n_vocab),
            positions: models.map(|model| model.max_positions),
            stop_ids: self.vocabulary().stop_ids.clone(),
            max_stop_ids: MAX_STOP_IDS,
            max_biases: MAX_BIASES,
            max_samples: MAX_N,
            penalties: true,
            record_top: Some(MAX_RECORD_TOP),
            pages: None,
        }
    }
}

impl Limits {
    /// These, with texts of at most `max_model_len` tokens.
    pub fn with_max_model_len(mut self, max_model_len: usize) -> Self {
        self.positions = self.positions.map(|positions| positions.min(max_model_len));
        self
    }

    /// Pages that a sample of `draft` takes at its longest; none where no engine runs yet.
    pub fn n_pages(&self, draft: &Draft) -> Option<usize> {
        let PageLimits { page_tokens, seats, .. } = self.pages.as_ref()?;
        let prompt = |role: usize| (seats[role], &draft.prompts[role]);
        let roles = draft.computed_roles();
        // Equal prompts at one seat are computed once. The id drawn last is not computed.
        let computed = roles
            .iter()
            .enumerate()
            .filter(|&(at, &role)| roles[..at].iter().all(|&earlier| prompt(earlier) != prompt(role)));
        let n_tokens = |role: usize| draft.prompts[role].len() + draft.sampling.max_tokens as usize;
        let n_positions = |role: usize| n_tokens(role).saturating_sub(1);
        Some(computed.map(|(_, &role)| n_positions(role).div_ceil(page_tokens[role])).sum())
    }

    /// Refuses what is out of range, by the name of the field.
    pub(super) fn check(&self, draft: &Draft) -> Result<()> {
        self.check_sampling(&draft.sampling)?;
        self.check_prompts(draft)?;
        self.check_mode(draft)?;
        self.check_stops(draft)?;
        self.check_bans(draft)?;
        if !(1..=self.max_samples).contains(&draft.n) {
            return Err(Error::argument("n", format!("{} is not in [1, {}]", draft.n, self.max_samples)));
        }
        match (draft.record, self.record_top) {
            (Some(_), None) => {
                return Err(Error::argument("record", "the engine was started without room for records"));
            }
            (Some(top), Some(limit)) => at_most("record", top, limit, "top entries")?,
            (None, _) => {}
        }
        if draft.sampling.is_penalised() && !self.penalties {
            return Err(Error::argument("repetition_penalty", "the engine was started without room for penalties"));
        }
        above_zero("queue_timeout", draft.queue_timeout)?;
        above_zero("timeout", draft.timeout)?;
        match (self.n_pages(draft), &self.pages) {
            (Some(needed), Some(PageLimits { n_pages, .. })) if needed > *n_pages => {
                Err(Error::NeverFits { needed, limit: *n_pages })
            }
            _ => Ok(()),
        }
    }

    /// Refuses an alpha out of range.
    pub fn check_alpha(&self, alpha: f32) -> Result<()> {
        within("alpha", alpha, -MAX_ALPHA..=MAX_ALPHA)
    }

    fn check_sampling(&self, sampling: &Sampling) -> Result<()> {
        self.check_alpha(sampling.alpha)?;
        within("temperature", sampling.temperature, 0.0..=f32::MAX)?;
        if sampling.top_k < -1 {
            return Err(Error::argument("top_k", format!("{} is not -1, 0 (both off) or positive", sampling.top_k)));
        }
        share("top_p", sampling.top_p)?;
        share("base_top_p", sampling.base_top_p)?;
        within("min_p", sampling.min_p, 0.0..=1.0)?;
        within("base_min_p", sampling.base_min_p, 0.0..=1.0)?;
        if !(sampling.repetition_penalty > 0.0 && sampling.repetition_penalty.is_finite()) {
            let message = format!("{} is not a finite number above 0", sampling.repetition_penalty);
            return Err(Error::argument("repetition_penalty", message));
        }
        within("presence_penalty", sampling.presence_penalty, -2.0..=2.0)?;
        within("frequency_penalty", sampling.frequency_penalty, -2.0..=2.0)?;
        at_most("logit_bias", sampling.logit_bias.len(), self.max_biases, "entries")?;
        for &(id, bias) in &sampling.logit_bias {
            self.check_id("logit_bias", id)?;
            within("logit_bias", bias, -MAX_BIAS..=MAX_BIAS)?;
        }
        check_biased_once(&sampling.logit_bias)?;
        if sampling.max_tokens == 0 {
            return Err(Error::argument("max_tokens", "0 is not at least 1"));
        }
        if sampling.min_tokens > sampling.max_tokens {
            let message = format!("{} is above max_tokens = {}", sampling.min_tokens, sampling.max_tokens);
            return Err(Error::argument("min_tokens", message));
        }
        Ok(())
    }

    /// The prompts of the roles that the mode reads. With alpha 0 the pair's are not computed, but must be right all the same.
    fn check_prompts(&self, draft: &Draft) -> Result<()> {
        for &role in draft.mode.roles() {
            let (name, prompt, n_rows) = (PROMPT_FIELDS[role], &draft.prompts[role], self.n_rows[role]);
            if prompt.is_empty() {
                return Err(Error::argument(name, "holds no token; give it text, or use a tokenizer that adds a BOS"));
            }
            if let Some(at) = prompt.iter().position(|&id| id as usize >= n_rows) {
                let message = format!("id {} at {at} is past the model's {n_rows} rows", prompt[at]);
                return Err(Error::argument(name, message));
            }
            let (tokens, limit) = (prompt.len() + draft.sampling.max_tokens as usize, self.positions[role]);
            if tokens > limit {
                let message = format!("{name} and max_tokens make {tokens} tokens, the limit is {limit}");
                return Err(Error::argument("max_tokens", message));
            }
        }
        Ok(())
    }

    /// What reads the base has no say where the base is not run.
    fn check_mode(&self, draft: &Draft) -> Result<()> {
        let sampling = &draft.sampling;
        let of_base = [
            ("base_top_p", sampling.base_top_p != 1.0),
            ("base_min_p", sampling.base_min_p != 0.0),
            ("record", draft.record.is_some()),
        ];
        match of_base.iter().find(|(_, is_set)| *is_set && draft.mode == Mode::ExpertOnly) {
            Some((name, _)) => {
                Err(Error::argument(*name, "compares with the base, which is not run for the expert alone"))
            }
            None => Ok(()),
        }
    }

    fn check_stops(&self, draft: &Draft) -> Result<()> {
        draft.sampling.stop_token_ids.iter().try_for_each(|&id| self.check_id("stop_token_ids", id))?;
        let n_stop_ids = draft.stop_ids(&self.stop_ids).len();
        at_most("stop_token_ids", n_stop_ids, self.max_stop_ids, "ids, EOS ids included")?;
        at_most("stop", draft.stop.len(), MAX_STOP_STRINGS, "strings")?;
        for stop in &draft.stop {
            if stop.is_empty() {
                return Err(Error::argument("stop", "an empty string would stop at once"));
            }
            at_most("stop", stop.len(), MAX_STOP_BYTES, "bytes")?;
        }
        Ok(())
    }

    fn check_bans(&self, draft: &Draft) -> Result<()> {
        // All words are looked through after each draw, for all who run.
        at_most("bad_words", draft.bad_words.len(), MAX_BAD_WORDS, "words")?;
        at_most("bad_words_first", draft.bad_first_ids.len(), MAX_BAD_WORDS, "words")?;
        for word in &draft.bad_words {
            if word.is_empty() {
                return Err(Error::argument("bad_words", "a word of no token cannot be banned"));
            }
            at_most("bad_words", word.len(), MAX_BAD_WORD_TOKENS, "tokens in a word")?;
        }
        draft.bad_words.iter().flatten().try_for_each(|&id| self.check_id("bad_words", id))?;
        draft.bad_first_ids.iter().try_for_each(|&id| self.check_id("bad_words_first", id))
    }

    fn check_id(&self, param: &str, id: u32) -> Result<()> {
        if (id as usize) < self.n_ids {
            return Ok(());
        }
        Err(Error::argument(param, format!("id {id} is outside the vocabulary of {} ids", self.n_ids)))
    }
}

/// Refuses a logit_bias that names an id twice.
pub(crate) fn check_biased_once(biases: &[(u32, f32)]) -> Result<()> {
    let mut ids: Vec<u32> = biases.iter().map(|&(id, _)| id).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(twice) => Err(Error::argument("logit_bias", format!("id {} is named twice", twice[0]))),
        None => Ok(()),
    }
}

fn within(param: &str, value: f32, range: RangeInclusive<f32>) -> Result<()> {
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

fn above_zero(param: &str, time: Option<Duration>) -> Result<()> {
    match time {
        Some(Duration::ZERO) => Err(Error::argument(param, "0 would end the request before it starts")),
        _ => Ok(()),
    }
}
