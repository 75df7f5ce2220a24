//! One request as a user writes it: by flags, or as a line of JSON with the same names. Both become the same
//! [`Request`]s here, and nowhere else.

use crate::engine::request::{MAX_N, Request, Sampling};
use crate::engine::trio::Trio;
use crate::engine::worker::random_seed;
use crate::text::prompt::{PromptRequest, Roles};
use crate::text::tokenizer::MAX_TEXT_BYTES;
use crate::text::vocabulary::ROLES;
use crate::{Error, Result};
use clap::Args;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What is asked for; absent fields take the library's defaults.
#[derive(Args, Serialize, Deserialize, Clone, Default, Debug)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RequestFields {
    /// Names the request in its result; lines only.
    #[arg(skip)]
    pub id: Option<Value>,

    /// The prompt; `-` reads standard input
    #[arg(short, long, value_name = "TEXT", help_heading = "Prompt", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Read the prompt from a file, `-` for standard input; one newline at its end is dropped
    #[arg(short, long, value_name = "FILE", help_heading = "Prompt", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// Put the prompt into the chat template of these roles: all, none, or a list of base,expert,anti-expert; bare:
    /// expert, the published setting
    #[arg(long, value_name = "ROLES", help_heading = "Prompt", num_args = 0..=1, default_missing_value = "expert")]
    #[serde(deserialize_with = "chat")]
    pub chat: Option<String>,
    /// System message of the roles with a chat template
    #[arg(long, value_name = "TEXT", help_heading = "Prompt", allow_hyphen_values = true)]
    pub system_prompt: Option<String>,
    /// The expert's own prompt, in place of the common one
    #[arg(long, value_name = "TEXT", help_heading = "Prompt", allow_hyphen_values = true)]
    pub expert_prompt: Option<String>,
    /// The anti-expert's own prompt, in place of the common one
    #[arg(long, value_name = "TEXT", help_heading = "Prompt", allow_hyphen_values = true)]
    pub anti_expert_prompt: Option<String>,
    /// Beginning of the response, not printed; it must give the same tokens in the three roles
    #[arg(long, value_name = "TEXT", help_heading = "Prompt", allow_hyphen_values = true)]
    pub response_prefix: Option<String>,

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
    /// Added to the score of a token id, -100 to 100; repeatable. In a line: {"ID": X, ..}
    #[arg(long, value_name = "ID=X", help_heading = "Sampling", value_parser = bias)]
    #[serde(serialize_with = "map_out", deserialize_with = "map_in")]
    pub logit_bias: Option<Vec<(u32, f32)>>,
    /// Only tokens in the base's own nucleus of this probability; 1: off [default: 1]
    #[arg(long, value_name = "P", help_heading = "Sampling", allow_hyphen_values = true)]
    pub base_top_p: Option<f32>,
    /// Only tokens with this share of the base's largest probability; 0: off [default: 0]
    #[arg(long, value_name = "P", help_heading = "Sampling", allow_hyphen_values = true)]
    pub base_min_p: Option<f32>,
    /// Makes draws repeatable [default: drawn, and shown by --json]
    #[arg(short, long, value_name = "N", help_heading = "Sampling", allow_hyphen_values = true)]
    pub seed: Option<u64>,
    /// Texts per prompt, 1 to 128; printed one after the other with a line `---` between, or as K JSON objects
    #[arg(long, value_name = "K", help_heading = "Sampling", allow_hyphen_values = true)]
    pub n: Option<u32>,

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

    /// Add a record of every step with its K best tokens, 0 to 20, to the JSON
    #[arg(long, value_name = "K", help_heading = "Output", allow_hyphen_values = true)]
    pub record: Option<usize>,
}

impl RequestFields {
    /// The requests of this prompt, one per sample, checked in full: what passes here can run.
    pub(super) fn requests(&self, trio: &Trio, max_model_len: Option<u32>) -> Result<Vec<Request>> {
        let prompts = self.prompts()?.encode(&trio.models().role_texts())?.ids;
        let n = self.n.unwrap_or(1);
        if !(1..=MAX_N).contains(&n) {
            return Err(Error::argument("n", format!("{n} is not in [1, {MAX_N}]")));
        }
        let mut sampling = self.sampling();
        sampling.max_tokens = self.fitting_tokens(trio, &prompts, max_model_len)?;
        let request = Request {
            prompts,
            sampling,
            sample_index: 0,
            stop: self.stop.clone().unwrap_or_default(),
            bad_words: banned("bad_words", self.bad_words.as_deref(), trio)?,
            bad_first_ids: banned("bad_words_first", self.bad_words_first.as_deref(), trio)?
                .into_iter()
                .map(|ids| ids[0])
                .collect(),
            record: self.record,
        };
        request.validate(trio.vocabulary().n_ids, &trio.vocabulary().stop_ids)?;
        Ok((0..n).map(|sample_index| Request { sample_index, ..request.clone() }).collect())
    }

    /// Whether any role's prompt goes through a chat template; what cannot be read is refused elsewhere.
    pub(super) fn uses_chat(&self) -> bool {
        self.chat.as_deref().is_some_and(|chat| chat.parse() != Ok(Roles::NONE))
    }

    /// What only the command line can say: `-` becomes the text of standard input, and a repeatable flag may name an
    /// id twice.
    pub(super) fn settle(&mut self) -> Result<()> {
        let mut ids: Vec<u32> = self.logit_bias.iter().flatten().map(|&(id, _)| id).collect();
        ids.sort_unstable();
        if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::argument("logit_bias", format!("id {} is named twice", twice[0])));
        }
        let stdin = |text: &Path| text.as_os_str() == "-";
        if self.prompt.as_deref().is_some_and(|text| stdin(Path::new(text))) {
            self.prompt = Some(read_text(&mut std::io::stdin().lock(), "prompt", Path::new("-"))?);
        }
        if self.prompt.is_none() && self.file.as_deref().is_some_and(stdin) {
            self.file = None;
            self.prompt = Some(read_text(&mut std::io::stdin().lock(), "file", Path::new("-"))?);
        }
        Ok(())
    }

    fn prompts(&self) -> Result<PromptRequest> {
        let text = match (&self.prompt, &self.file) {
            (Some(_), Some(_)) => return Err(Error::argument("file", "both a prompt and a file are given")),
            (Some(text), None) => text.clone(),
            (None, Some(path)) => {
                let refused = |error| Error::argument("file", format!("{path:?}: {error}"));
                let mut file = std::fs::File::open(path).map_err(refused)?;
                read_text(&mut file, "file", path)?
            }
            (None, None) => {
                return Err(Error::argument("prompt", "missing: give the text of a prompt, or a file that holds it"));
            }
        };
        Ok(PromptRequest {
            text,
            chat: self.chat.as_deref().unwrap_or("none").parse()?,
            system: self.system_prompt.clone(),
            expert_text: self.expert_prompt.clone(),
            anti_text: self.anti_expert_prompt.clone(),
            response_prefix: self.response_prefix.clone(),
        })
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

    /// max_tokens, held against every role's room: what was asked for must fit, the default takes what there is.
    fn fitting_tokens(&self, trio: &Trio, prompts: &[Vec<u32>; 3], max_model_len: Option<u32>) -> Result<u32> {
        let positions = trio.models().checkpoint_of_role().map(|checkpoint| checkpoint.config.max_positions);
        let limit = |role: usize| positions[role].min(max_model_len.map_or(usize::MAX, |len| len as usize));
        let room = |role: &usize| limit(*role).saturating_sub(prompts[*role].len());
        let role = (0..3).min_by_key(room).expect("three roles");
        let (name, n_prompt, limit, room) = (ROLES[role], prompts[role].len(), limit(role), room(&role));
        let limit_name = if limit < positions[role] { "max_model_len" } else { "max_position_embeddings" };
        let numbers = format!("the prompt of {name} has {n_prompt} tokens, its limit is {limit} ({limit_name})");
        if room == 0 {
            return Err(Error::argument("prompt", format!("no room for a response: {numbers}")));
        }
        match self.max_tokens {
            Some(asked) if asked as usize > room => {
                Err(Error::argument("max_tokens", format!("{asked} is more than the {room} left: {numbers}")))
            }
            Some(asked) => Ok(asked),
            None => Ok(Sampling::default().max_tokens.min(room as u32)),
        }
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

/// All of a text without one newline at its end, which editors and `echo` put there.
fn read_text(from: &mut impl Read, param: &str, path: &Path) -> Result<String> {
    let refused = |error: &dyn std::fmt::Display| Error::argument(param, format!("{path:?}: {error}"));
    let mut bytes = Vec::new();
    // Enough for the tokenizer to say that it is too long.
    from.take(MAX_TEXT_BYTES as u64 + 3).read_to_end(&mut bytes).map_err(|error| refused(&error))?;
    let mut text = String::from_utf8(bytes).map_err(|error| refused(&error))?;
    if text.ends_with('\n') {
        text.truncate(text.len() - if text.ends_with("\r\n") { 2 } else { 1 });
    }
    Ok(text)
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let form = || format!("{text:?} is not ID=X, a token id and a number");
    let (id, bias) = text.split_once('=').ok_or_else(form)?;
    Ok((id.parse().map_err(|_| form())?, bias.parse().map_err(|_| form())?))
}

/// `chat` in a line: roles as the flag names them, a list of them, or true for a bare flag.
fn chat<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "must be roles, a list of roles, true or false")]
    enum Chat {
        Bare(bool),
        Roles(String),
        List(Vec<String>),
    }
    Ok(Option::deserialize(from)?.map(|chat| match chat {
        Chat::Bare(true) => "expert".into(),
        Chat::Bare(false) => "none".into(),
        Chat::Roles(roles) => roles,
        Chat::List(roles) if roles.is_empty() => "none".into(),
        Chat::List(roles) => roles.join(","),
    }))
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
