//! Which files hold the weights of a model, and every tensor in them.

use super::safetensors::{self, Entry, UniqueStrings};
use super::source::{Blob, Source, check_plain};
use crate::{Error, Result};
use serde::Deserialize;
use serde::de::Deserializer;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// An entry and the file that holds it.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) entry: Entry,
    pub(super) shard: usize,
}

/// All tensors of a model by name, with the open files.
#[derive(Debug)]
pub(super) struct Shards {
    pub(super) files: Vec<Blob>,
    pub(super) tensors: BTreeMap<String, Stored>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(deserialize_with = "unique")]
    weight_map: Vec<(String, String)>,
}

fn unique<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, String)>, D::Error> {
    deserializer.deserialize_map(UniqueStrings)
}

impl Index {
    fn parse(text: &[u8], path: &Path) -> Result<Self> {
        serde_json::from_slice(text).map_err(|e| Error::file(path, e))
    }
}

/// The files that the index names, each a plain name of a safetensors file, so that they can be fetched; none where there
/// is no index.
pub(super) fn names_in_index(source: &Source) -> Result<BTreeSet<String>> {
    let path = source.path(INDEX);
    let Some(text) = source.read(INDEX, MAX_INDEX_BYTES)? else { return Ok(BTreeSet::new()) };
    let names: BTreeSet<String> = Index::parse(&text, &path)?.weight_map.into_iter().map(|(_, file)| file).collect();
    for file in &names {
        check_plain(file, &path)?;
        if !file.ends_with(".safetensors") {
            return Err(Error::file(&path, format!("names the shard {file:?}, which is not a safetensors file")));
        }
    }
    Ok(names)
}

impl Shards {
    /// `model.safetensors` if it is there, else what the index names: the order of transformers.
    pub(super) fn open(source: &Source) -> Result<Self> {
        let mut shards = Shards { files: Vec::new(), tensors: BTreeMap::new() };
        if let Some(blob) = source.open(SINGLE)? {
            shards.add(blob)?;
        } else if let Some(text) = source.read(INDEX, MAX_INDEX_BYTES)? {
            shards.add_indexed(source, &text)?;
        } else {
            let message =
                foreign_weights(&source.names()?).unwrap_or_else(|| format!("neither {SINGLE} nor {INDEX} is there"));
            return Err(Error::file(source.root(), message));
        }
        Ok(shards)
    }

    fn add(&mut self, blob: Blob) -> Result<()> {
        let shard = self.files.len();
        for entry in safetensors::read_header(&blob)? {
            if let Some(other) = self.tensors.get(&entry.name) {
                let first = self.files[other.shard].path.display().to_string();
                return Err(Error::tensor(&blob.path, &entry.name, format!("is in {first:?} as well")));
            }
            self.tensors.insert(entry.name.clone(), Stored { entry, shard });
        }
        self.files.push(blob);
        Ok(())
    }

    fn add_indexed(&mut self, source: &Source, text: &[u8]) -> Result<()> {
        let path = source.path(INDEX);
        let index = Index::parse(text, &path)?;
        let mut shard_ids = BTreeMap::new();
        for (_, file) in &index.weight_map {
            if !shard_ids.contains_key(file) {
                shard_ids.insert(file, self.files.len());
                self.add(source.shard(file, &path)?)?;
            }
        }
        for (name, file) in &index.weight_map {
            if self.tensors.get(name).is_none_or(|stored| stored.shard != shard_ids[file]) {
                return Err(Error::tensor(&path, name, format!("is not in the shard {file:?} that the index names")));
            }
        }
        Ok(())
    }
}

/// Says what the files of a model hold instead of safetensors, where it is a form that is known and not read.
pub(super) fn foreign_weights(names: &[String]) -> Option<String> {
    if names.iter().any(|name| name == SINGLE || name == INDEX) {
        return None;
    }
    let ending = |endings: &[&str]| names.iter().find(|n| endings.iter().any(|e| n.ends_with(e)));
    let gguf = |name| format!("holds {name:?}: GGUF is not read, use the safetensors of the same model");
    let pickle =
        |name| format!("holds {name:?}: pickled weights can run code and are never read, convert to safetensors");
    ending(&[".gguf"]).map(gguf).or_else(|| ending(&[".bin", ".pt", ".pth", ".ckpt"]).map(pickle))
}
