//! The first cut of a text into pieces. An expression comes with the model's files, so it is held to a number of steps.
//!
//! The crate's own `Split` and `ByteLevel` take the limit of their regex engine for the end of the text: all that is left
//! becomes one piece, without a word. Here that is an error. The other pre-tokenizers have no such engine and are the
//! crate's.

use super::tokenizer::MAX_TEXT_BYTES;
use fancy_regex::{Regex, RegexBuilder};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::time::{Duration, Instant};
use tokenizers::models::bpe::BPE;
use tokenizers::pattern::{Invert, Pattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};
use tokenizers::{Offsets, PreTokenizedString, PreTokenizer as _, SplitDelimiterBehavior, TokenizerImpl};

/// The crate's tokenizer of the one model that is read, with this pre-tokenizer in place of its own.
pub(super) type Inner = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizer, PostProcessorWrapper, DecoderWrapper>;

/// Steps back that one match may take. Published expressions take some for each character of a long run of blanks. The
/// engine also refuses, by itself, a match that holds more than a million places to step back to.
const MAX_BACKTRACKS: usize = 4 * MAX_TEXT_BYTES;
/// For all matches in one text, whatever pieces it is in and whatever expressions cut it. An expression that looks far
/// ahead of each short match takes the square of the text's length without a step back; a published one cuts the longest
/// text that is encoded in a fraction of a second.
const MAX_TIME: Duration = Duration::from_secs(10);
/// Bytes of an automaton, of which an expression may take some: a count of hundreds of thousands is a state for each.
/// Published expressions take some kilobytes.
const MAX_AUTOMATON_BYTES: usize = 4 << 20;
/// Matches between two looks at the clock.
const MATCHES_PER_LOOK: usize = 8;
/// What `ByteLevel` with `use_regex` cuts by: GPT-2's expression, as the crate has it.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// As in tokenizer.json.
#[derive(Debug, Clone)]
pub(super) enum PreTokenizer {
    Sequence(Vec<PreTokenizer>),
    Split(Split),
    /// A space before each piece that does not begin with one.
    SpaceBefore,
    Other(PreTokenizerWrapper),
}

/// Cuts where an expression matches.
#[derive(Debug, Clone)]
pub(super) struct Split {
    regex: Regex,
    behavior: SplitDelimiterBehavior,
    invert: bool,
}

/// A cut that is to be done by then.
#[derive(Clone, Copy)]
struct InTime<'a> {
    split: &'a Split,
    deadline: Instant,
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
            let regex = expression(pattern)?;
            let ByRegex { behavior, invert } = serde_json::from_value(json)?;
            Ok(PreTokenizer::Split(Split { regex, behavior, invert }))
        }
        _ => match serde_json::from_value(json)? {
            PreTokenizerWrapper::ByteLevel(bytes) if bytes.use_regex => words(bytes),
            other => Ok(PreTokenizer::Other(other)),
        },
    }
}

fn expression(pattern: &str) -> serde_json::Result<Regex> {
    let mut builder = RegexBuilder::new(pattern);
    let regex = builder.backtrack_limit(MAX_BACKTRACKS).delegate_size_limit(MAX_AUTOMATON_BYTES).build();
    regex.map_err(|e| serde_json::Error::custom(format_args!("expression {pattern:?}: {e}")))
}

/// The steps of a `ByteLevel` with `use_regex`, in its order.
fn words(bytes: ByteLevel) -> serde_json::Result<PreTokenizer> {
    let split = Split { regex: expression(WORDS)?, behavior: SplitDelimiterBehavior::Isolated, invert: false };
    let rest = PreTokenizerWrapper::ByteLevel(bytes.use_regex(false).add_prefix_space(false));
    let mut steps = vec![PreTokenizer::Split(split), PreTokenizer::Other(rest)];
    if bytes.add_prefix_space {
        steps.insert(0, PreTokenizer::SpaceBefore);
    }
    Ok(PreTokenizer::Sequence(steps))
}

impl tokenizers::PreTokenizer for PreTokenizer {
    /// Called once for a text, with all its pieces between added tokens.
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        self.cut(text, Instant::now() + MAX_TIME)
    }
}

impl PreTokenizer {
    fn cut(&self, text: &mut PreTokenizedString, deadline: Instant) -> tokenizers::Result<()> {
        match self {
            PreTokenizer::Sequence(parts) => parts.iter().try_for_each(|part| part.cut(text, deadline)),
            PreTokenizer::Split(split) => {
                let matches = InTime { split, deadline };
                text.split(|_, piece| {
                    if split.invert {
                        piece.split(Invert(matches), split.behavior)
                    } else {
                        piece.split(matches, split.behavior)
                    }
                })
            }
            PreTokenizer::SpaceBefore => text.split(|_, mut piece| {
                if !piece.get().starts_with(' ') {
                    piece.prepend(" ");
                }
                Ok([piece])
            }),
            PreTokenizer::Other(other) => other.pre_tokenize(text),
        }
    }
}

impl Pattern for InTime<'_> {
    /// Where the expression matches, and what stands between.
    fn find_matches(&self, text: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        if text.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let regex = &self.split.regex;
        let refuse =
            |what: &str| format!("the expression {:?} takes {what} on a text of {} bytes", regex.as_str(), text.len());
        let (mut pieces, mut end) = (Vec::new(), 0);
        let mut matches = regex.find_iter(text);
        for count in 0.. {
            if count % MATCHES_PER_LOOK == 0 && Instant::now() > self.deadline {
                return Err(refuse(&format!("more than {} seconds", MAX_TIME.as_secs())).into());
            }
            let Some(found) = matches.next() else { break };
            let found = found.map_err(|error| refuse("too many steps") + &format!(": {error}"))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{OffsetReferential, OffsetType};

    fn cut_by(json: Value, text: &str, deadline: Instant) -> tokenizers::Result<Vec<String>> {
        let mut text = PreTokenizedString::from(text);
        from_json(json).expect("a right pre-tokenizer").cut(&mut text, deadline)?;
        let pieces = text.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
        Ok(pieces.into_iter().map(|(piece, ..)| piece.to_string()).collect())
    }

    /// The steps against the crate's own in one.
    #[test]
    fn byte_level_is_the_crates() {
        for add_prefix_space in [false, true] {
            for text in ["Hello  world's 12 \n\n x", " a", "", "   ", "l'été\u{301}, 日本!?\t"] {
                let json = serde_json::json!({
                    "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": true
                });
                let mut expected = PreTokenizedString::from(text);
                ByteLevel::new(add_prefix_space, true, true).pre_tokenize(&mut expected).expect("a short text");
                let expected = expected.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
                let expected: Vec<&str> = expected.into_iter().map(|(piece, ..)| piece).collect();
                let pieces = cut_by(json, text, Instant::now() + MAX_TIME).expect("a short text");
                assert_eq!(pieces, expected, "{text:?}, {add_prefix_space}");
            }
        }
    }

    #[test]
    fn a_count_that_takes_much_memory_is_refused() {
        let published = [
            WORDS,
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\s+",
        ];
        assert!(published.iter().all(|pattern| expression(pattern).is_ok()));
        // Less than what the engine would bear by itself, with look-around and without.
        for rest in ["", r"|\s+(?!\S)"] {
            assert!(expression(&(r"\p{L}a{100000}b".to_owned() + rest)).is_ok());
            let pattern = r"\p{L}a{200000}b".to_owned() + rest;
            let refused = expression(&pattern).expect_err("it takes more than 4 MiB");
            assert!(refused.to_string().starts_with(&format!("expression {pattern:?}: ")), "{refused}");
        }
    }

    /// Pieces that an earlier step has cut get no time of their own.
    #[test]
    fn the_deadline_is_the_texts() {
        let regex = |pattern: &str| serde_json::json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let json = serde_json::json!({"type": "Sequence", "pretokenizers": [regex(" "), regex("a")]});
        let error = cut_by(json, "a b a b", Instant::now() - Duration::from_nanos(1)).expect_err("it is too late");
        assert!(error.to_string().contains("takes more than 10 seconds"), "{error}");
    }
}
