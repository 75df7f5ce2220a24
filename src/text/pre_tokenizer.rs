//! The first cut of a text into pieces. An expression comes with the model's files, so it is held to a number of steps.
//!
//! The crate's own `Split` takes the limit of its regex engine for the end of the text: all that is left becomes one piece,
//! without a word. Here that is an error. Every other pre-tokenizer is the crate's.

use super::tokenizer::MAX_TEXT_BYTES;
use fancy_regex::{Regex, RegexBuilder};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::time::{Duration, Instant};
use tokenizers::pattern::{Invert, Pattern};
use tokenizers::{DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};
use tokenizers::{Offsets, PreTokenizedString, SplitDelimiterBehavior, TokenizerImpl};

/// The crate's tokenizer with this pre-tokenizer in place of its own.
pub(super) type Inner =
    TokenizerImpl<ModelWrapper, NormalizerWrapper, PreTokenizer, PostProcessorWrapper, DecoderWrapper>;

/// Steps back that one match may take. Published expressions take some for each character of a long run of blanks. The
/// engine also refuses, by itself, a match that holds more than a million places to step back to.
const MAX_BACKTRACKS: usize = 4 * MAX_TEXT_BYTES;
/// For all matches in one text. An expression that looks far ahead of each short match takes the square of the text's
/// length without a step back; a published one cuts the longest text that is encoded in a fraction of a second.
const MAX_TIME: Duration = Duration::from_secs(10);
/// Matches between two looks at the clock.
const MATCHES_PER_LOOK: usize = 8;

/// As in tokenizer.json.
#[derive(Debug, Clone)]
pub(super) enum PreTokenizer {
    Sequence(Vec<PreTokenizer>),
    Split(Split),
    Other(PreTokenizerWrapper),
}

/// Cuts where an expression matches.
#[derive(Debug, Clone)]
pub(super) struct Split {
    regex: Regex,
    behavior: SplitDelimiterBehavior,
    invert: bool,
}

impl<'de> Deserialize<'de> for PreTokenizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_json(Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

fn from_json(json: Value) -> serde_json::Result<PreTokenizer> {
    #[derive(Deserialize)]
    struct Sequence {
        pretokenizers: Vec<PreTokenizer>,
    }
    #[derive(Deserialize)]
    struct ByRegex {
        behavior: SplitDelimiterBehavior,
        invert: bool,
    }
    let name = json.get("type").and_then(Value::as_str);
    let pattern = json.pointer("/pattern/Regex").and_then(Value::as_str);
    match (name, pattern) {
        (Some("Sequence"), _) => {
            serde_json::from_value(json).map(|Sequence { pretokenizers }| PreTokenizer::Sequence(pretokenizers))
        }
        (Some("Split"), Some(pattern)) => {
            let regex = RegexBuilder::new(pattern).backtrack_limit(MAX_BACKTRACKS).build();
            let regex = regex.map_err(|e| serde_json::Error::custom(format_args!("expression {pattern:?}: {e}")))?;
            let ByRegex { behavior, invert } = serde_json::from_value(json)?;
            Ok(PreTokenizer::Split(Split { regex, behavior, invert }))
        }
        _ => serde_json::from_value(json).map(PreTokenizer::Other),
    }
}

impl tokenizers::PreTokenizer for PreTokenizer {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        match self {
            PreTokenizer::Sequence(parts) => parts.iter().try_for_each(|part| part.pre_tokenize(text)),
            PreTokenizer::Split(split) if split.invert => {
                text.split(|_, piece| piece.split(Invert(split), split.behavior))
            }
            PreTokenizer::Split(split) => text.split(|_, piece| piece.split(split, split.behavior)),
            PreTokenizer::Other(other) => other.pre_tokenize(text),
        }
    }
}

impl Pattern for &Split {
    /// Where the expression matches, and what stands between.
    fn find_matches(&self, text: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        if text.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let refuse = |what: &str| {
            format!("the expression {:?} takes {what} on a text of {} bytes", self.regex.as_str(), text.len())
        };
        let started = Instant::now();
        let (mut pieces, mut end) = (Vec::new(), 0);
        for (count, found) in self.regex.find_iter(text).enumerate() {
            let found = found.map_err(|error| refuse("too many steps") + &format!(": {error}"))?;
            if count % MATCHES_PER_LOOK == 0 && started.elapsed() > MAX_TIME {
                return Err(refuse(&format!("more than {} seconds", MAX_TIME.as_secs())).into());
            }
            if end != found.start() {
                pieces.push(((end, found.start()), false));
            }
            pieces.push(((found.start(), found.end()), true));
            end = found.end();
        }
        if end != text.len() {
            pieces.push(((end, text.len()), false));
        }
        Ok(pieces)
    }
}
