//! The header of a safetensors file, read strictly: a list of entries that cover the data exactly, each once.
//!
//! The file is eight bytes of header length, a JSON object, and the data. The `safetensors` crate keeps the last of two
//! equal names without a word, so the header is parsed here, with a visitor that sees every key. The visitor refuses any
//! value that is not of the expected kind where it begins, so nesting never gets deeper than an entry's shape.

use super::source::Blob;
use crate::{Error, Result};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::collections::HashSet;
use std::fmt;
use std::path::Path;

/// The length of the header, before it.
pub(super) const LENGTH_BYTES: u64 = 8;
/// Longest header read. The largest published models stay under a tenth of it.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Most tensors in one file.
const MAX_ENTRIES: usize = 65_536;
const MAX_DIMENSIONS: usize = 8;

/// One tensor as the header has it: sizes are checked, the data type may still be one the kernels lack.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: String,
    pub(super) shape: Vec<usize>,
    /// Absolute in the file.
    pub(super) offset: u64,
    pub(super) n_bytes: usize,
}

/// Reads and checks the header of `blob`; entries come in the order of their data.
pub(super) fn read_header(blob: &Blob) -> Result<Vec<Entry>> {
    let path = &blob.path;
    let length = blob.read(0, LENGTH_BYTES.min(blob.n_bytes) as usize)?;
    let n_header = header_end(path, &length, blob.n_bytes)? - LENGTH_BYTES;
    let header = blob.read(LENGTH_BYTES, n_header as usize)?;
    let text = std::str::from_utf8(&header)
        .map_err(|e| Error::file_at(path, LENGTH_BYTES + e.valid_up_to() as u64, "the header is not UTF-8"))?;
    let raw = parse(text).map_err(|e| Error::file_at(path, LENGTH_BYTES + byte_of(text, &e), without_position(&e)))?;
    let n_data = blob.n_bytes - LENGTH_BYTES - n_header;
    let mut entries = Vec::with_capacity(raw.len());
    for entry in raw {
        check_size(path, &entry)?;
        entries.push(entry);
    }
    entries.sort_by_key(|e| e.offset);
    check_cover(path, &entries, n_data)?;
    entries.iter_mut().for_each(|e| e.offset += LENGTH_BYTES + n_header);
    Ok(entries)
}

/// Where the header ends, read off the `start` of a file of `n_bytes`: its first eight bytes, if it has so many.
pub(super) fn header_end(path: &Path, start: &[u8], n_bytes: u64) -> Result<u64> {
    let Some(length) = start.first_chunk() else {
        return Err(Error::file(path, format!("too short for a safetensors file: {n_bytes} bytes")));
    };
    let (n_header, room) = (u64::from_le_bytes(*length), MAX_HEADER_BYTES.min(n_bytes - LENGTH_BYTES));
    if !(2..=room).contains(&n_header) {
        return Err(Error::file_at(path, 0, format!("header length {n_header}, must be 2 to {room}")));
    }
    Ok(LENGTH_BYTES + n_header)
}

/// Bits of one element, for every type the format names; the kernels read fewer.
fn bits(dtype: &str) -> Option<usize> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

fn check_size(path: &Path, entry: &Entry) -> Result<()> {
    let refuse = |message: String| Err(Error::tensor(path, &entry.name, message));
    let Some(bits) = bits(&entry.dtype) else { return refuse(format!("unknown dtype {:?}", entry.dtype)) };
    let n_bits = entry.shape.iter().try_fold(bits, |product, &n| product.checked_mul(n));
    match n_bits {
        None => refuse(format!("shape {:?} overflows", entry.shape)),
        Some(0) => refuse(format!("shape {:?} has no elements", entry.shape)),
        Some(n) if n % 8 != 0 => refuse(format!("shape {:?} of {} ends inside a byte", entry.shape, entry.dtype)),
        Some(n) if n / 8 != entry.n_bytes => {
            let (shape, dtype, has) = (&entry.shape, &entry.dtype, entry.n_bytes);
            refuse(format!("shape {shape:?} of {dtype} needs {} bytes, data_offsets give {has}", n / 8))
        }
        Some(_) => Ok(()),
    }
}

/// Every byte of the data belongs to exactly one tensor.
fn check_cover(path: &Path, entries: &[Entry], n_data: u64) -> Result<()> {
    let mut end = 0;
    for entry in entries {
        if entry.offset != end {
            let what = if entry.offset < end { "overlaps the tensor before it" } else { "leaves a hole before it" };
            let message = format!("{what}: data begins at {}, the last tensor ended at {end}", entry.offset);
            return Err(Error::tensor(path, &entry.name, message));
        }
        end += entry.n_bytes as u64;
        if end > n_data {
            let message = format!("data ends at {end}, the file's data at {n_data}");
            return Err(Error::tensor(path, &entry.name, message));
        }
    }
    if end != n_data {
        return Err(Error::file(path, format!("{} bytes after the last tensor", n_data - end)));
    }
    Ok(())
}

/// serde_json counts lines and columns; the message of a binary file wants bytes.
fn byte_of(text: &str, error: &serde_json::Error) -> u64 {
    let before: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    (before + error.column().saturating_sub(1)) as u64
}

fn without_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let end = message.rfind(" at line ").unwrap_or(message.len());
    format!("the header is not valid: {}", &message[..end])
}

fn parse(text: &str) -> serde_json::Result<Vec<Entry>> {
    let mut json = serde_json::Deserializer::from_str(text);
    let entries = json.deserialize_map(Header)?;
    json.end()?;
    Ok(entries)
}

struct Header;

impl<'de> Visitor<'de> for Header {
    type Value = Vec<Entry>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut entries, mut seen) = (Vec::new(), HashSet::new());
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("{name:?} stands twice")));
            }
            if name == "__metadata__" {
                map.next_value_seed(UniqueStrings)?;
                continue;
            }
            if entries.len() == MAX_ENTRIES {
                return Err(A::Error::custom(format_args!("more than {MAX_ENTRIES} tensors")));
            }
            let entry = map.next_value_seed(TensorEntry(&name));
            entries.push(entry.map_err(|e| A::Error::custom(format_args!("tensor {name:?}: {e}")))?);
        }
        Ok(entries)
    }
}

/// An object of strings, no key twice: `__metadata__`, and the weight map of a shard index.
pub(super) struct UniqueStrings;

impl<'de> DeserializeSeed<'de> for UniqueStrings {
    type Value = Vec<(String, String)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for UniqueStrings {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut pairs, mut seen) = (Vec::new(), HashSet::new());
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format_args!("{key:?} stands twice")));
            }
            pairs.push((key, value));
        }
        Ok(pairs)
    }
}

struct TensorEntry<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for TensorEntry<'_> {
    type Value = Entry;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Entry, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TensorEntry<'_> {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None::<String>, None::<Vec<usize>>, None::<[u64; 2]>);
        while let Some(key) = map.next_key::<String>()? {
            let twice = match key.as_str() {
                "dtype" => dtype.replace(map.next_value()?).is_some(),
                "shape" => shape.replace(map.next_value_seed(Shape)?).is_some(),
                "data_offsets" => offsets.replace(map.next_value()?).is_some(),
                _ => return Err(A::Error::custom(format_args!("unknown key {key:?}"))),
            };
            if twice {
                return Err(A::Error::custom(format_args!("{key:?} stands twice")));
            }
        }
        let missing = |key| A::Error::custom(format_args!("no {key:?}"));
        let [begin, end] = offsets.ok_or_else(|| missing("data_offsets"))?;
        let n_bytes = end.checked_sub(begin).and_then(|n| usize::try_from(n).ok());
        let n_bytes = n_bytes.ok_or_else(|| A::Error::custom(format_args!("data_offsets end {end} before {begin}")))?;
        let dtype = dtype.ok_or_else(|| missing("dtype"))?;
        let shape = shape.ok_or_else(|| missing("shape"))?;
        Ok(Entry { name: self.0.to_string(), dtype, shape, offset: begin, n_bytes })
    }
}

/// At most eight dimensions: the rest of a longer list is not read.
struct Shape;

impl<'de> DeserializeSeed<'de> for Shape {
    type Value = Vec<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<usize>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Shape {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of whole numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<usize>, A::Error> {
        let mut shape = Vec::new();
        while let Some(n) = list.next_element()? {
            if shape.len() == MAX_DIMENSIONS {
                return Err(A::Error::custom(format_args!("shape has more than {MAX_DIMENSIONS} dimensions")));
            }
            shape.push(n);
        }
        Ok(shape)
    }
}
