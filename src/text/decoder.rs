//! How a tokenizer turns the name of a token back into bytes, for the decoders that work on each token alone.

use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// The steps of a tokenizer's decoder that change single tokens, in order.
///
/// `Fuse` joins and `Strip` trims the very start of a text; neither changes the bytes of a generated token, whose text is
/// that of prompt and response without that of the prompt.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Decoder {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// GPT-2's alphabet of 256 printable characters, one per byte.
    ByteLevel,
    /// `<0xNN>` is the byte NN.
    ByteFallback,
    /// One text for another.
    Replace { from: String, to: String },
}

impl Decoder {
    /// From the `decoder` of tokenizer.json; anything that works across tokens is refused by name.
    pub(super) fn from_json(json: Option<&Value>, path: &Path) -> Result<Self> {
        let mut decoder = Decoder { steps: Vec::new() };
        match json.filter(|json| !json.is_null()) {
            // Without a decoder the crate joins tokens with spaces, which no language model means.
            None => Err(Error::config(path, "decoder", "missing; accepted are ByteLevel and sentencepiece's forms")),
            Some(json) => decoder.add(json, path).map(|()| decoder),
        }
    }

    fn add(&mut self, json: &Value, path: &Path) -> Result<()> {
        let text = |name: &str| json.get(name).and_then(Value::as_str);
        let refuse = |message: String| Err(Error::config(path, "decoder", message));
        let replace = |from: &str, to: &str| Step::Replace { from: from.into(), to: to.into() };
        match text("type") {
            Some("Sequence") => {
                let Some(decoders) = json.get("decoders").and_then(Value::as_array) else {
                    return refuse("Sequence without decoders".into());
                };
                // The recursion limit of serde_json, which made this value, bounds the nesting.
                return decoders.iter().try_for_each(|json| self.add(json, path));
            }
            Some("ByteLevel") => self.steps.push(Step::ByteLevel),
            Some("ByteFallback") => self.steps.push(Step::ByteFallback),
            Some("Metaspace") => {
                // One character, as the crate demands; an empty one would double every token.
                let Some(replacement) = text("replacement").filter(|text| text.chars().count() == 1) else {
                    return refuse("Metaspace needs a replacement of one character".into());
                };
                self.steps.push(replace(replacement, " "));
            }
            Some("Replace") => {
                let from = json.pointer("/pattern/String").and_then(Value::as_str);
                let (Some(from), Some(to)) = (from, text("content")) else {
                    return refuse("Replace with anything but a plain string is not supported".into());
                };
                // So the table of bytes is never longer than the file.
                if from.is_empty() || to.len() > from.len() {
                    return refuse(format!("Replace of {from:?} by the longer {to:?} is not supported"));
                }
                self.steps.push(replace(from, to));
            }
            Some("Fuse") => {}
            Some("Strip") if json.get("stop").and_then(Value::as_u64) == Some(0) => {}
            Some(other) => return refuse(format!("{other:?} is not supported")),
            None => return refuse("has no type".into()),
        }
        Ok(())
    }

    /// Appends the bytes of the token called `name`.
    pub(super) fn append_bytes(&self, name: &str, into: &mut Vec<u8>) {
        let mut name = std::borrow::Cow::Borrowed(name);
        for step in &self.steps {
            match step {
                Step::Replace { from, to } if name.contains(from.as_str()) => name = name.replace(from, to).into(),
                Step::Replace { .. } => {}
                Step::ByteFallback => {
                    if let Some(byte) = fallback_byte(&name) {
                        return into.push(byte);
                    }
                }
                Step::ByteLevel => {
                    // As the crate: a name with any character outside the alphabet stands for itself.
                    if let Some(bytes) = name.chars().map(alphabet_byte).collect::<Option<Vec<u8>>>() {
                        return into.extend(bytes);
                    }
                }
            }
        }
        into.extend_from_slice(name.as_bytes());
    }
}

fn fallback_byte(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2 writes printable Latin-1 as itself and the other 68 bytes, in order, from U+0100 on.
fn alphabet_byte(c: char) -> Option<u8> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(c) {
        code @ 0..=0xFF => Some(code as u8).filter(|&b| printable(b)),
        code => (0..=255).filter(|&b| !printable(b)).nth((code - 0x100) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_a_bijection() {
        let mut seen = [false; 256];
        for c in (0..0x200).filter_map(char::from_u32) {
            if let Some(byte) = alphabet_byte(c) {
                assert!(!std::mem::replace(&mut seen[usize::from(byte)], true), "{byte} twice");
            }
        }
        assert_eq!(seen, [true; 256]);
        assert_eq!((alphabet_byte('Ġ'), alphabet_byte('Ċ')), (Some(b' '), Some(b'\n')));
    }
}
