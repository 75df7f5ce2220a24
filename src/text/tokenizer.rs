//! One role's tokenizer: text to ids, and the bytes that each id decodes to.
//!
//! Encoding is the `tokenizers` crate's. Decoding is a table of bytes made once at load, because a stream needs the bytes
//! of one id without its neighbours: for every decoder that is accepted here, the text of a list of ids is the
//! concatenation of their bytes.

use super::decoder::Decoder;
use super::pre_tokenizer::Inner;
use super::tokenizer_json::TokenizerJson;
use crate::checkpoint::{Fields, Source};
use crate::{Error, Result};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::OnceLock;
use tokenizers::AddedToken;

const FILE: &str = "tokenizer.json";
const CONFIG_FILE: &str = "tokenizer_config.json";
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Most ids a tokenizer may define; the widest row of logits is far below.
pub(super) const MAX_IDS: u32 = 1 << 20;
/// Longest text that is encoded: what the tests have compared with the reference implementation.
pub const MAX_TEXT_BYTES: usize = 1 << 20;
/// Private-use characters around a number: stands for a special token of the template in [`Tokenizer::encode_guarded`].
const GUARD: [char; 2] = ['\u{F8F0}', '\u{F8F1}'];

/// A tokenizer with what its configuration says of BOS and EOS.
pub struct Tokenizer {
    path: PathBuf,
    inner: Inner,
    /// Special tokens, longest text first.
    specials: Vec<(u32, AddedToken)>,
    is_special: Vec<bool>,
    is_added: Vec<bool>,
    bytes: ByteTable,
    config: TokenizerConfig,
    guarded: OnceLock<Inner>,
    /// What may matter to a person.
    pub warnings: Vec<String>,
}

/// The fields of tokenizer_config.json that matter here, and the special tokens that templates see.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenizerConfig {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
    /// `unk_token`.
    pub unk: Option<String>,
    /// `pad_token`.
    pub pad: Option<String>,
    /// `add_bos_token`: a wish; tokenizer.json decides.
    pub add_bos: Option<bool>,
}

/// The bytes of every id, in one buffer.
struct ByteTable {
    buffer: Vec<u8>,
    spans: Vec<Option<Range<u32>>>,
}

impl Tokenizer {
    /// Reads tokenizer.json and tokenizer_config.json of `source`.
    pub fn open(source: &Source) -> Result<Self> {
        let path = source.path(FILE);
        let text = source.read(FILE, MAX_FILE_BYTES)?.ok_or_else(|| Error::file(&path, "there is no such file"))?;
        let json = TokenizerJson::read(&text, &path)?;
        drop(text);
        let decoder = Decoder::from_json(json.decoder.as_ref(), &path)?;
        let n_ids = n_ids(json.last_id(), &path)?;
        let inner = json.build(&path)?;
        let bytes = ByteTable::new(&inner, n_ids, &decoder, &path)?;
        let (mut is_special, mut is_added) = (vec![false; n_ids], vec![false; n_ids]);
        let mut specials = Vec::new();
        for (id, token) in inner.get_added_tokens_decoder() {
            is_added[id as usize] = true;
            if token.special {
                is_special[id as usize] = true;
                specials.push((id, token));
            }
        }
        specials.sort_by(|(_, a), (_, b)| (b.content.len(), &a.content).cmp(&(a.content.len(), &b.content)));
        let config = TokenizerConfig::read(source)?;
        let guarded = OnceLock::new();
        let warnings = Vec::new();
        let mut tokenizer = Tokenizer { path, inner, specials, is_special, is_added, bytes, config, guarded, warnings };
        tokenizer.check_config()?;
        Ok(tokenizer)
    }

    /// Whether two models have the same tokenizer, byte for byte.
    pub fn same_files(a: &Source, b: &Source) -> Result<bool> {
        Ok(a.same_bytes(b, FILE)? && a.same_bytes(b, CONFIG_FILE)?)
    }

    /// A bare text, as the tokenizer encodes it by default: its own BOS rule, special tokens in the text parsed.
    pub fn encode_raw(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(&self.inner, text, true)
    }

    /// A text that a template rendered: special tokens parsed, none added.
    pub fn encode_templated(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(&self.inner, text, false)
    }

    /// A text that a template rendered, where special tokens spelled inside `contents` stay text.
    ///
    /// The special tokens outside `contents` are replaced by private ones, the rest is encoded with special tokens off, and
    /// the private ids are put back. So the text is cut exactly where the tokenizer itself would cut it, and no merge across a
    /// border of content differs from [`Tokenizer::encode_templated`].
    pub fn encode_guarded(&self, text: &str, contents: &[Range<usize>]) -> Result<Vec<u32>> {
        if text.contains(GUARD) {
            return Err(Error::argument("prompt", "holds the private characters U+F8F0 or U+F8F1"));
        }
        let mut guarded_text = String::with_capacity(text.len());
        let mut end = 0;
        for content in contents {
            self.guard(&text[end..content.start], &mut guarded_text);
            guarded_text.push_str(&text[content.clone()]);
            end = content.end;
        }
        self.guard(&text[end..], &mut guarded_text);
        let guarded = self.guarded()?;
        let ids = self.encode(guarded, &guarded_text, false)?;
        let back = |id| {
            let name = guarded.get_added_vocabulary().simple_id_to_token(id);
            name.and_then(|name| self.guarded_id(&name)).unwrap_or(id)
        };
        Ok(ids.into_iter().map(back).collect())
    }

    /// Whether `text` spells a special token.
    pub fn mentions_special(&self, text: &str) -> bool {
        self.specials.iter().any(|(_, token)| text.contains(&token.content))
    }

    /// The bytes that `id` adds to a text, special tokens by their name; `None` where the tokenizer has no such id.
    pub fn bytes_of(&self, id: u32) -> Option<&[u8]> {
        let span = self.bytes.spans.get(id as usize)?.clone()?;
        Some(&self.bytes.buffer[span.start as usize..span.end as usize])
    }

    /// The bytes of `id` in text for people: nothing for special tokens and for ids that are not defined.
    pub fn shown_bytes(&self, id: u32) -> &[u8] {
        if self.is_special(id) { &[] } else { self.bytes_of(id).unwrap_or_default() }
    }

    /// The text of `ids` without special tokens, as a stream of them would show it.
    pub fn text_of(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.shown_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether `id` is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.is_special.get(id as usize) == Some(&true)
    }

    /// Whether `id` was added to the model's own vocabulary.
    pub fn is_added(&self, id: u32) -> bool {
        self.is_added.get(id as usize) == Some(&true)
    }

    /// One more than the highest id.
    pub fn n_ids(&self) -> usize {
        self.bytes.spans.len()
    }

    /// The id of a token by its exact name.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The id of the configured EOS token.
    pub fn eos_id(&self) -> Option<u32> {
        self.id_of(self.config.eos.as_deref()?)
    }

    /// The id of the configured BOS token.
    pub fn bos_id(&self) -> Option<u32> {
        self.id_of(self.config.bos.as_deref()?)
    }

    /// Whether [`Tokenizer::encode_raw`] puts the BOS token first.
    pub fn adds_bos(&self) -> Result<bool> {
        let first = self.encode_raw("a")?.first().copied();
        Ok(first.is_some() && first == self.bos_id())
    }

    /// Special tokens by their role.
    pub fn config(&self) -> &TokenizerConfig {
        &self.config
    }

    /// tokenizer.json, for messages.
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    fn encode(&self, with: &Inner, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        if text.len() > MAX_TEXT_BYTES {
            let message = format!("{} bytes of text, the limit is {MAX_TEXT_BYTES}", text.len());
            return Err(Error::argument("prompt", message));
        }
        let encoding = with.encode_fast(text, add_special_tokens).map_err(|e| Error::file(&self.path, e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Appends `text` with its special tokens replaced; of two that begin at one place the longer wins, as in the crate.
    fn guard(&self, text: &str, into: &mut String) {
        let find = |index: usize, from: usize| {
            let found = text[from..].find(&self.specials[index].1.content);
            found.map_or((usize::MAX, index), |at| (from + at, index))
        };
        // Where each comes next: looked for again only where that is passed, so that a text of nothing else takes no
        // longer than it must. Longer texts come first in the list, so the smaller index is the longer.
        let mut next: Vec<(usize, usize)> = (0..self.specials.len()).map(|index| find(index, 0)).collect();
        let mut end = 0;
        while let Some(&(at, index)) = next.iter().min().filter(|(at, _)| *at < text.len()) {
            into.push_str(&text[end..at]);
            into.push_str(&guard_name(index));
            end = at + self.specials[index].1.content.len();
            next.iter_mut().filter(|(at, _)| *at < end).for_each(|next| *next = find(next.1, end));
        }
        into.push_str(&text[end..]);
    }

    /// The special token that a name made by [`guard_name`] stands for.
    fn guarded_id(&self, name: &str) -> Option<u32> {
        let index: usize = name.strip_prefix(GUARD[0])?.strip_suffix(GUARD[1])?.parse().ok()?;
        self.specials.get(index).map(|(id, _)| *id)
    }

    /// A copy in which special tokens are text, and private tokens cut where they would. Made when first needed: it is as
    /// large as the tokenizer, and few prompts spell a special token.
    fn guarded(&self) -> Result<&Inner> {
        if let Some(guarded) = self.guarded.get() {
            return Ok(guarded);
        }
        let mut copy = self.inner.clone();
        copy.set_encode_special_tokens(true);
        let private = self.specials.iter().enumerate().map(|(index, (_, token))| AddedToken {
            content: guard_name(index),
            special: false,
            normalized: false,
            ..token.clone()
        });
        copy.add_tokens(private.collect::<Vec<_>>()).map_err(|e| Error::file(&self.path, e))?;
        Ok(self.guarded.get_or_init(|| copy))
    }

    fn check_config(&mut self) -> Result<()> {
        for (name, token) in [("bos_token", &self.config.bos), ("eos_token", &self.config.eos)] {
            if let Some(token) = token.as_deref().filter(|token| self.id_of(token).is_none()) {
                let path = self.path.with_file_name(CONFIG_FILE);
                return Err(Error::config(path, name, format!("{token:?} is not in {FILE}")));
            }
        }
        if let Some(id) = self.encode_raw("a")?.into_iter().find(|&id| self.bytes_of(id).is_none()) {
            return Err(Error::config(&self.path, "post_processor", format!("adds id {id}, which is not defined")));
        }
        let adds_bos = self.adds_bos()?;
        if self.bos_id().is_some() && self.config.add_bos.is_some_and(|wish| wish != adds_bos) {
            let does = if adds_bos { "adds" } else { "does not add" };
            self.warnings.push(format!("tokenizer.json {does} BOS, against add_bos_token in {CONFIG_FILE}"));
        }
        Ok(())
    }
}

impl TokenizerConfig {
    fn read(source: &Source) -> Result<Self> {
        let Some(fields) = Fields::read(source, CONFIG_FILE)? else { return Ok(Self::default()) };
        Ok(TokenizerConfig {
            bos: token(&fields, "bos_token")?,
            eos: token(&fields, "eos_token")?,
            unk: token(&fields, "unk_token")?,
            pad: token(&fields, "pad_token")?,
            add_bos: fields.flag("add_bos_token")?,
        })
    }
}

/// A token is a string, or an object with its `content`.
fn token(fields: &Fields, name: &str) -> Result<Option<String>> {
    match fields.get(name) {
        Some(value) if value.is_object() => {
            let object = fields.object(name)?.expect("it is an object");
            object.text("content")?.map(|s| Some(s.to_string())).ok_or_else(|| object.error("content", "missing"))
        }
        _ => Ok(fields.text(name)?.map(str::to_string)),
    }
}

impl ByteTable {
    fn new(inner: &Inner, n_ids: usize, decoder: &Decoder, path: &PathBuf) -> Result<Self> {
        let n_names = inner.get_vocab_size(true);
        let mut table = ByteTable { buffer: Vec::new(), spans: vec![None; n_ids] };
        let mut n_defined = 0;
        for id in 0..n_ids as u32 {
            let Some(name) = inner.id_to_token(id) else { continue };
            n_defined += 1;
            let start = table.buffer.len() as u32;
            decoder.append_bytes(&name, &mut table.buffer);
            table.spans[id as usize] = Some(start..table.buffer.len() as u32);
        }
        if n_defined != n_names {
            let message = format!("{n_names} tokens share {n_defined} ids: an id stands twice");
            return Err(Error::file(path, message));
        }
        Ok(table)
    }
}

fn guard_name(index: usize) -> String {
    format!("{}{index}{}", GUARD[0], GUARD[1])
}

fn n_ids(last: Option<u32>, path: &PathBuf) -> Result<usize> {
    match last {
        None => Err(Error::file(path, "defines no token")),
        Some(id) if id >= MAX_IDS => Err(Error::file(path, format!("token id {id}, the limit is {MAX_IDS}"))),
        Some(id) => Ok(id as usize + 1),
    }
}
