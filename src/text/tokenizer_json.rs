//! tokenizer.json held to what the `tokenizers` crate can take, and put together from the crate's parts.
//!
//! The crate trusts its file: a merge that makes no token, a template that names a token it does not define, an odd
//! normaliser end in a panic inside it. Here each of these is an error with the field's name. What the families that are
//! read do not use (other models, dropout, subword marks) is refused by name.
//!
//! The crate's own reader makes two trees of JSON of all tokens and merges before it makes a tokenizer: 40 MB for
//! 49,152 tokens. Here no tree of them is made: a first pass over the text keeps only the model's type, a second one makes
//! the map of tokens that the crate keeps, and the list of merges that it makes its own map from.

use super::pre_tokenizer::{Inner, PreTokenizer};
use super::tokenizer::MAX_IDS;
use crate::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::Path;
use tokenizers::models::bpe::{BPE, BpeBuilder, Merges, Vocab};
use tokenizers::{AddedToken, NormalizerWrapper, PostProcessorWrapper};

/// How much longer the normaliser may make a text, so that the limit on text bounds its memory too.
const MAX_GROWTH: usize = 64;
const NORMALIZERS: &[&str] =
    &["Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt", "Strip", "StripAccents", "Prepend", "Replace"];
const PRE_TOKENIZERS: &[&str] =
    &["Sequence", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "Whitespace", "WhitespaceSplit"];
const POST_PROCESSORS: &[&str] = &["Sequence", "ByteLevel", "TemplateProcessing"];

/// What of the file makes a tokenizer. How a text would be cut to a length or padded is left out: nobody asks for either.
#[derive(Deserialize)]
pub(super) struct TokenizerJson {
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<AddedId>,
    pub(super) decoder: Option<Value>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    model: Model,
}

/// A token beside those of the model, or one of them with a meaning of its own.
#[derive(Deserialize)]
struct AddedId {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[derive(Deserialize)]
struct Model {
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    vocab: Vocab,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

/// Only the model's type: the rest has another form in other models.
#[derive(Deserialize)]
struct Kind {
    model: ModelKind,
}

#[derive(Deserialize)]
struct ModelKind {
    #[serde(rename = "type")]
    name: Option<String>,
}

impl TokenizerJson {
    /// Reads and checks the text of `path`.
    pub(super) fn read(text: &[u8], path: &Path) -> Result<Self> {
        let kind: Kind = serde_json::from_slice(text).map_err(|e| Error::file(path, e))?;
        // Old files of the one model that has merges do not name it.
        if let Some(other) = kind.model.name.filter(|name| name != "BPE") {
            return Err(Error::config(path, "model.type", format!("{other:?} is not supported, only BPE")));
        }
        let json: Self = serde_json::from_slice(text).map_err(|e| Error::file(path, e))?;
        if let Some(other) = json.version.as_ref().filter(|version| *version != "1.0") {
            return Err(Error::config(path, "version", format!("{other:?} is not supported, only \"1.0\"")));
        }
        json.model.check(path)?;
        check_parts(path, "pre_tokenizer", json.pre_tokenizer.as_ref(), PRE_TOKENIZERS, &mut |_| Ok(()))?;
        let mut growth = 1;
        check_parts(path, "normalizer", json.normalizer.as_ref(), NORMALIZERS, &mut |part| {
            check_growth(part, &mut growth)
        })?;
        check_parts(path, "post_processor", json.post_processor.as_ref(), POST_PROCESSORS, &mut check_template)?;
        Ok(json)
    }

    /// The highest id of a token, added or not.
    pub(super) fn last_id(&self) -> Option<u32> {
        self.model.vocab.values().copied().chain(self.added_tokens.iter().map(|added| added.id)).max()
    }

    /// The crate's tokenizer. Its decoder is left out: ids are decoded by a table of our own.
    pub(super) fn build(self, path: &Path) -> Result<Inner> {
        let of_file = |error: tokenizers::Error| Error::file(path, error);
        let mut inner = Inner::new(self.model.build().map_err(of_file)?);
        inner.with_normalizer(part::<NormalizerWrapper>(path, "normalizer", self.normalizer)?).map_err(of_file)?;
        inner.with_pre_tokenizer(part::<PreTokenizer>(path, "pre_tokenizer", self.pre_tokenizer)?);
        inner.with_post_processor(part::<PostProcessorWrapper>(path, "post_processor", self.post_processor)?);
        inner.add_tokens(self.added_tokens.iter().map(|added| added.token.clone())).map_err(of_file)?;
        check_added(&inner, &self.added_tokens, path)?;
        Ok(inner)
    }
}

/// The crate gives an added token the next free id, whatever the file says.
fn check_added(inner: &Inner, added: &[AddedId], path: &Path) -> Result<()> {
    for AddedId { id, token: AddedToken { content, .. } } in added {
        match inner.token_to_id(content) {
            Some(found) if found == *id => {}
            Some(found) => {
                let message = format!("added token {content:?} has id {id}, its place gives it {found}");
                return Err(Error::file(path, message));
            }
            None => return Err(Error::file(path, format!("added token {id} is empty"))),
        }
    }
    Ok(())
}

/// A part of the pipeline from its description.
fn part<T: DeserializeOwned>(path: &Path, field: &str, json: Option<Value>) -> Result<Option<T>> {
    json.map(serde_json::from_value).transpose().map_err(|error| Error::config(path, field, error))
}

impl Model {
    fn check(&self, path: &Path) -> Result<()> {
        if self.dropout.is_some_and(|dropout| dropout != 0.0) {
            return Err(Error::config(path, "model.dropout", "a text would have other ids each time it is encoded"));
        }
        let marks = [
            ("prefix", &self.continuing_subword_prefix, "continuing_subword_"),
            ("suffix", &self.end_of_word_suffix, "end_of_word_"),
        ];
        for (end, mark, start) in marks {
            if mark.as_ref().is_some_and(|mark| !mark.is_empty()) {
                return Err(Error::config(
                    path,
                    format!("model.{start}{end}"),
                    "is not supported, must be empty or null",
                ));
            }
        }
        if let Some((name, id)) = self.vocab.iter().find(|&(_, &id)| id >= MAX_IDS) {
            return Err(Error::config(path, "model.vocab", format!("{name:?} has id {id}, the limit is {MAX_IDS}")));
        }
        self.merges.iter().enumerate().try_for_each(|(rank, merge)| self.check_merge(path, rank, merge))
    }

    fn build(self) -> tokenizers::Result<BPE> {
        let halves = |merge| match merge {
            Merge::Pair(left, right) => Some((left, right)),
            // Lines with a version are no merges.
            Merge::Line(line) => {
                line.split_once(' ').filter(|_| !is_version(&line)).map(|(left, right)| (left.into(), right.into()))
            }
        };
        let merges: Merges = self.merges.into_iter().filter_map(halves).collect();
        let mut builder = BpeBuilder::new()
            .vocab_and_merges(self.vocab, merges)
            .fuse_unk(self.fuse_unk.unwrap_or(false))
            .byte_fallback(self.byte_fallback.unwrap_or(false))
            .ignore_merges(self.ignore_merges.unwrap_or(false));
        if let Some(unknown) = self.unk_token {
            builder = builder.unk_token(unknown);
        }
        builder.build()
    }

    /// Both halves and what they make are tokens.
    fn check_merge(&self, path: &Path, rank: usize, merge: &Merge) -> Result<()> {
        let refuse = |message: String| Err(Error::config(path, format!("model.merges[{rank}]"), message));
        let (left, right) = match merge {
            Merge::Pair(left, right) => (left.as_str(), right.as_str()),
            Merge::Line(line) if is_version(line) => return Ok(()),
            Merge::Line(line) => match line.split_once(' ') {
                Some((left, right)) if !right.contains(' ') => (left, right),
                _ => return refuse(format!("{line:?}, must be two tokens with a space between")),
            },
        };
        let whole = format!("{left}{right}");
        match [left, right, &whole].into_iter().find(|name| !self.vocab.contains_key(*name)) {
            Some(absent) => refuse(format!("{left:?} and {right:?}: {absent:?} is not in the vocabulary")),
            None => Ok(()),
        }
    }
}

/// The first line of merges.txt, which some files kept.
fn is_version(line: &str) -> bool {
    line.starts_with("#version")
}

/// Holds a part of the pipeline, and those in it where it is a `Sequence`, to the `accepted` types and to `check`.
fn check_parts(
    path: &Path,
    field: &str,
    json: Option<&Value>,
    accepted: &[&str],
    check: &mut dyn FnMut(&Value) -> Result<(), String>,
) -> Result<()> {
    let Some(json) = json.filter(|json| !json.is_null()) else { return Ok(()) };
    let refuse = |message: String| Err(Error::config(path, field, message));
    match json.get("type").and_then(Value::as_str) {
        None => return refuse("has no type".into()),
        Some(name) if !accepted.contains(&name) => {
            return refuse(format!("{name:?} is not supported; accepted are {}", accepted.join(", ")));
        }
        Some("Sequence") => {
            // Named after what they hold: normalizers, pretokenizers, processors.
            let lists = json.as_object().into_iter().flatten().filter_map(|(_, value)| value.as_array());
            // The nesting is bounded by the JSON parser's own limit.
            return lists.flatten().try_for_each(|part| check_parts(path, field, Some(part), accepted, check));
        }
        Some(_) => {}
    }
    check(json).or_else(refuse)
}

fn check_growth(part: &Value, growth: &mut usize) -> Result<(), String> {
    let text = |pointer: &str| part.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let factor = match text("/type") {
        "Prepend" => text("/prepend").len(),
        "Replace" if part.pointer("/pattern/String").is_none() => {
            return Err("Replace with anything but a plain string is not supported".into());
        }
        "Replace" => text("/content").len().div_ceil(text("/pattern/String").len().max(1)),
        _ => 1,
    };
    *growth = growth.saturating_mul(factor.max(1));
    if *growth > MAX_GROWTH { Err(format!("makes a text more than {MAX_GROWTH} times as long")) } else { Ok(()) }
}

/// A template may hold the text, and special tokens that it defines.
fn check_template(part: &Value) -> Result<(), String> {
    for piece in part.get("single").and_then(Value::as_array).into_iter().flatten() {
        let name = |pointer| piece.pointer(pointer).and_then(Value::as_str);
        let defines = |name| part.get("special_tokens").is_some_and(|tokens| tokens.get(name).is_some());
        match (name("/SpecialToken/id"), name("/Sequence/id")) {
            (Some(token), _) if defines(token) => {}
            (Some(token), _) => return Err(format!("holds {token:?}, which special_tokens does not define")),
            (None, Some("A")) => {}
            (None, _) => return Err(format!("holds {piece}, must be the text, A, or a special token")),
        }
    }
    Ok(())
}
