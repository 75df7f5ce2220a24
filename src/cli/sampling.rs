//! How a text is drawn, as flags and fields of a line: shared by all that produce text for a user.

use crate::Error;
use crate::Result;
use crate::engine::random_seed;
use crate::engine::request::{Draft, Mode, Sampling};
use crate::engine::trio::Trio;
use crate::text::vocabulary::ROLES;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// How to draw and where to end; absent fields take the library's defaults.
#[derive(Args, Serialize, Deserialize, Clone, Default, Debug)]
#[serde(default)]
pub(super) struct SamplingFields {
    /// What the text comes from: the combined models, the base alone (as with alpha 0), or the expert alone [default:
    /// combined]
    #[arg(long, value_name = "NAME", value_enum, help_heading = "Sampling")]
    pub mode: Option<ModeName>,
    /// Weight of expert - anti-expert: 0 the base alone, 1 the published setting [default: 1]
    #[arg(long, value_name = "X", help_heading = "Sampling", allow_hyphen_values = true)]
    pub alpha: Option<f32>,
    /// 0 takes the best token each time [default: 0]
    #[arg(long, visible_alias = "temp", value_name = "T", help_heading = "Sampling", allow_hyphen_values = true)]
    pub temperature: Option<f32>,
    /// Keep the K best tokens; 0 or -1: off [default: 0]
    #[arg(long, value_name = "K", help_heading = "Sampling", allow_hyphen_values = true)]
    pub top_k: Option<i64>,
    /// Keep the smallest set of best tokens with this probability; 1: off [default: 1]
    #[arg(long, value_name = "P", help_heading = "Sampling", allow_hyphen_values = true)]
    pub top_p: Option<f32>,
    /// Keep tokens with this share of the best one's probability; 0: off [default: 0]
    #[arg(long, value_name = "P", help_heading = "Sampling", allow_hyphen_values = true)]
    pub min_p: Option<f32>,
    /// Divides the score of tokens seen in prompt or response; 1: off [default: 1]
    #[arg(long, value_name = "X", help_heading = "Sampling", allow_hyphen_values = true)]
    pub repetition_penalty: Option<f32>,
    /// Taken off the score of tokens seen in the response, -2 to 2 [default: 0]
    #[arg(long, value_name = "X", help_heading = "Sampling", allow_hyphen_values = true)]
    pub presence_penalty: Option<f32>,
    /// Taken off for every time a token was seen in the response, -2 to 2 [default: 0]
    #[arg(long, value_name = "X", help_heading = "Sampling", allow_hyphen_values = true)]
    pub frequency_penalty: Option<f32>,
    /// Added to the score of a token id, -100 to 100; repeatable
    #[arg(long, value_name = "ID=X", help_heading = "Sampling", value_parser = bias)]
    #[serde(serialize_with = "map_out", deserialize_with = "map_in")]
    pub logit_bias: Option<Vec<(u32, f32)>>,
    /// Only tokens in the base's own nucleus of this probability; 1: off [default: 1]
    #[arg(long, value_name = "P", help_heading = "Sampling", allow_hyphen_values = true)]
    pub base_top_p: Option<f32>,
    /// Only tokens with this share of the base's largest probability; 0: off [default: 0]
    #[arg(long, value_name = "P", help_heading = "Sampling", allow_hyphen_values = true)]
    pub base_min_p: Option<f32>,
    /// Makes draws repeatable [default: drawn]
    #[arg(short, long, value_name = "N", help_heading = "Sampling", allow_hyphen_values = true)]
    pub seed: Option<u64>,

    /// Most tokens produced [default: 256, or what the models have room for]
    #[arg(short = 'n', long, value_name = "N", help_heading = "Length and stops", allow_hyphen_values = true)]
    pub max_tokens: Option<u32>,
    /// No end of text before so many tokens [default: 0]
    #[arg(long, value_name = "N", help_heading = "Length and stops", allow_hyphen_values = true)]
    pub min_tokens: Option<u32>,
    /// Do not end at the models' end-of-text tokens
    #[arg(long, help_heading = "Length and stops", num_args = 0, default_missing_value = "true")]
    pub ignore_eos: Option<bool>,
    /// End before this text; repeatable
    #[arg(long, value_name = "TEXT", help_heading = "Length and stops", allow_hyphen_values = true)]
    #[serde(deserialize_with = "one_or_many")]
    pub stop: Option<Vec<String>>,
    /// End at these token ids; commas between, or repeated
    #[arg(long, value_name = "IDS", help_heading = "Length and stops", value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_many")]
    pub stop_token_ids: Option<Vec<u32>>,
    /// Text that may not appear, as its tokens with and without a space before it; repeatable
    #[arg(long, value_name = "TEXT", help_heading = "Length and stops", allow_hyphen_values = true)]
    #[serde(deserialize_with = "one_or_many")]
    pub bad_words: Option<Vec<String>>,
    /// The response may not begin with the first token of this text, with or without a space; repeatable
    #[arg(long, value_name = "TEXT", help_heading = "Length and stops", allow_hyphen_values = true)]
    #[serde(deserialize_with = "one_or_many")]
    pub bad_words_first: Option<Vec<String>>,
}

/// `--mode`.
#[derive(ValueEnum, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum ModeName {
    Combined,
    Base,
    Expert,
}

/// How many tokens the prompts leave.
pub(super) struct Room {
    /// Tokens that a response can have.
    pub left: usize,
    /// Which role is the tightest, and its numbers.
    numbers: String,
}

impl SamplingFields {
    /// The request for `prompts`, not checked yet: `max_tokens` is what [`Self::fitting_tokens`] gave.
    pub(super) fn draft(&self, trio: &Trio, prompts: [Vec<u32>; 3], max_tokens: u32) -> Result<Draft> {
        let first_words = banned("bad_words_first", self.bad_words_first.as_deref(), trio)?;
        Ok(Draft {
            prompts,
            mode: self.mode(),
            sampling: Sampling { max_tokens, ..self.sampling() },
            stop: self.stop.clone().unwrap_or_default(),
            bad_words: banned("bad_words", self.bad_words.as_deref(), trio)?,
            bad_first_ids: first_words.into_iter().map(|ids| ids[0]).collect(),
            ..Draft::default()
        })
    }

    /// Which models the text comes from.
    pub(super) fn mode(&self) -> Mode {
        match self.mode {
            None | Some(ModeName::Combined) => Mode::Combined,
            Some(ModeName::Base) => Mode::BaseOnly,
            Some(ModeName::Expert) => Mode::ExpertOnly,
        }
    }

    fn sampling(&self) -> Sampling {
        let default = Sampling::default();
        Sampling {
            alpha: self.alpha.unwrap_or(default.alpha),
            temperature: self.temperature.unwrap_or(default.temperature),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(default.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            logit_bias: self.logit_bias.clone().unwrap_or_default(),
            // The samples of a prompt differ by their index, so they share one seed.
            seed: Some(self.seed.unwrap_or_else(random_seed)),
            max_tokens: self.max_tokens.unwrap_or(default.max_tokens),
            min_tokens: self.min_tokens.unwrap_or(default.min_tokens),
            ignore_eos: self.ignore_eos.unwrap_or(default.ignore_eos),
            stop_token_ids: self.stop_token_ids.clone().unwrap_or_default(),
            base_top_p: self.base_top_p.unwrap_or(default.base_top_p),
            base_min_p: self.base_min_p.unwrap_or(default.base_min_p),
        }
    }

    /// What the models that the text comes from were made for, in tokens.
    pub(super) fn positions(&self, trio: &Trio) -> usize {
        let positions = trio.limits().positions;
        self.mode().roles().iter().map(|&role| positions[role]).min().expect("every mode reads a role")
    }

    /// max_tokens: what was asked for must fit, the default takes what there is.
    pub(super) fn fitting_tokens(&self, room: &Room) -> Result<u32> {
        room.fits("max_tokens", self.max_tokens.unwrap_or(0))?;
        room.fits("min_tokens", self.min_tokens.unwrap_or(0))?;
        Ok(self.max_tokens.unwrap_or(Sampling::default().max_tokens.min(room.left as u32)))
    }
}

impl Room {
    /// What the roles of `mode` have room for after `prompts`; an error where that is nothing.
    pub(super) fn after(prompts: &[Vec<u32>; 3], mode: Mode, trio: &Trio, max_model_len: Option<u32>) -> Result<Self> {
        let positions = trio.limits().positions;
        let limit = |role: usize| positions[role].min(max_model_len.map_or(usize::MAX, |len| len as usize));
        let left = |role: &usize| limit(*role).saturating_sub(prompts[*role].len());
        let role = *mode.roles().iter().min_by_key(|role| left(role)).expect("every mode reads a role");
        let (name, n_prompt, limit, left) = (ROLES[role], prompts[role].len(), limit(role), left(&role));
        let limit_name = if limit < positions[role] { "max_model_len" } else { "max_position_embeddings" };
        let numbers = format!("the prompt of {name} has {n_prompt} tokens, its limit is {limit} ({limit_name})");
        if left == 0 {
            return Err(Error::argument("prompt", format!("no room for a response: {numbers}")));
        }
        Ok(Self { left, numbers })
    }

    /// Refuses more tokens than are left.
    pub(super) fn fits(&self, param: &str, n_tokens: u32) -> Result<()> {
        if n_tokens as usize <= self.left {
            return Ok(());
        }
        Err(Error::argument(param, format!("{n_tokens} is more than the {} left: {}", self.left, self.numbers)))
    }

    /// What there is to say once it is used up.
    pub(super) fn full(&self) -> String {
        format!("{}, and this is all that it leaves", self.numbers)
    }
}

/// The token sequences of words, with and without a space before each, as transformers and vLLM ban them.
fn banned(param: &str, words: Option<&[String]>, trio: &Trio) -> Result<Vec<Vec<u32>>> {
    let mut sequences = Vec::new();
    for word in words.unwrap_or_default() {
        let word = word.trim_start();
        if word.is_empty() {
            return Err(Error::argument(param, "an empty text cannot be banned"));
        }
        for text in [word.to_string(), format!(" {word}")] {
            let ids = trio.tokenizers()[0].encode_templated(&text)?;
            // A sequence with an id that is never sampled cannot appear.
            if ids.iter().all(|&id| trio.vocabulary().is_live(id)) && !ids.is_empty() && !sequences.contains(&ids) {
                sequences.push(ids);
            }
        }
    }
    Ok(sequences)
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let form = || format!("{text:?} is not ID=X, a token id and a number");
    let (id, bias) = text.split_once('=').ok_or_else(form)?;
    Ok((id.parse().map_err(|_| form())?, bias.parse().map_err(|_| form())?))
}

/// A repeatable flag in a line: one value or a list.
fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<Vec<T>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "must be one value or a list of values, of the flag's type")]
    enum OneOrMany<T> {
        One(T),
        Many(Vec<T>),
    }
    Ok(Option::deserialize(from)?.map(|values| match values {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    }))
}

fn map_out<S: serde::Serializer>(pairs: &Option<Vec<(u32, f32)>>, to: S) -> Result<S::Ok, S::Error> {
    match pairs {
        None => to.serialize_none(),
        Some(pairs) => to.collect_map(pairs.iter().copied()),
    }
}

fn map_in<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<(u32, f32)>>, D::Error> {
    let Some(object) = Option::<serde_json::Map<String, Value>>::deserialize(from)? else { return Ok(None) };
    let pair = |(id, bias): (String, Value)| {
        let pair = id.parse().ok().zip(bias.as_f64().map(|bias| bias as f32));
        pair.ok_or_else(|| serde::de::Error::custom(format!("{id:?}: {bias} is not a token id and a number")))
    };
    object.into_iter().map(pair).collect::<Result<Vec<_>, _>>().map(Some)
}
