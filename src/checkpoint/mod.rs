//! A model's directory, read and checked: named tensors, a [`ModelConfig`], and nothing that can still be wrong.
//!
//! First station of the walk. Nothing else reads the weights or the configuration of a model; the tokenizer and the chat
//! template are read by [`crate::text`] from the same [`Source`].

mod config;
mod family;
mod fields;
mod finite;
mod generation;
pub mod hub;
mod layers;
mod layout;
mod made;
mod rope;
mod safetensors;
pub mod shapes;
mod shards;
mod source;

pub use crate::backend::{Activation, Dtype};
pub use config::{ModelConfig, Scales};
pub use family::{Family, Norms, QkNorm};
pub(crate) use fields::Fields;
pub use generation::GenerationConfig;
pub use layers::LayerKind;
pub(crate) use layout::{EMBEDDING, HEAD, NormNames};
pub use made::Made;
pub use rope::{QGrowth, Rope, RopeScaling};
pub use source::{Blob, FileBytes, Header, Identity, Source, same_files};

use crate::{Error, Result};
use half::{bf16, f16};
use shards::{Shards, Stored};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Differences between files and configuration that a message lists.
const MAX_LISTED: usize = 10;

/// An open model whose tensors are exactly those that its configuration asks for.
#[derive(Debug)]
pub struct Checkpoint {
    /// The directory, or `org/name@1a2b3c4` for a model of the hub's cache; for messages.
    pub name: String,
    /// config.json.
    pub config: ModelConfig,
    /// generation_config.json.
    pub generation: GenerationConfig,
    source: Source,
    files: Vec<Blob>,
    tensors: BTreeMap<String, TensorInfo>,
    allows_non_finite: bool,
    n_read: AtomicU64,
}

/// One tensor in the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// How it is stored.
    pub dtype: Dtype,
    /// Rows first.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub n_bytes: usize,
    shard: usize,
    offset: u64,
}

impl Checkpoint {
    /// Reads config.json, generation_config.json and the headers of the weights, and checks them against each other.
    /// No weight is read yet.
    pub fn open(source: Source) -> Result<Self> {
        // First, so that a path that is not a directory says so rather than "no config.json".
        source.identity()?;
        let mut config = ModelConfig::read(&source)?;
        let generation = GenerationConfig::read(&source)?;
        let mut shards = Shards::open(&source)?;
        if config.nested {
            keep_text(&source, &mut config, &mut shards)?;
        }
        if config.tied && shards.tensors.contains_key(HEAD) {
            // As transformers computes. The head may be the embedding once more: to find out would be to read both, and
            // the logits are the same.
            config.tied = false;
            config
                .warnings
                .push("config.json ties the LM head to the embedding, but the files hold a head: it is used".into());
        }
        check_layout(&source, &config, &shards)?;
        let kept = shards.tensors.into_iter().filter(|(name, _)| !layout::is_known_extra(name));
        let tensors = kept.map(|(name, stored)| Ok((name, tensor_info(&shards.files, stored)?)));
        let tensors = tensors.collect::<Result<_>>()?;
        let root = source.root();
        let name = hub::snapshot_name(&root).unwrap_or_else(|| root.display().to_string());
        let (allows_non_finite, n_read) = (false, AtomicU64::new(0));
        Ok(Checkpoint { name, config, generation, source, files: shards.files, tensors, allows_non_finite, n_read })
    }

    /// What is known of tensor `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// All tensors by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// Bytes of all tensors.
    pub fn n_bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.n_bytes as u64).sum()
    }

    /// Bytes of tensors read so far, by whatever thread.
    pub fn n_read(&self) -> u64 {
        self.n_read.load(Ordering::Relaxed)
    }

    /// Takes weights that are NaN or infinite as they are, which is an error otherwise.
    pub fn allow_non_finite(&mut self) {
        self.allows_non_finite = true;
    }

    /// The little-endian bytes of tensor `name`.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.expect(name)?.n_bytes];
        self.read_into(name, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Bytes of tensor `name` from byte `offset` on; whole elements, inside the tensor. Each is checked to be finite.
    pub fn read_into(&self, name: &str, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let info = self.expect(name)?;
        assert!(offset + bytes.len() <= info.n_bytes, "a part of a tensor is inside it");
        let file = &self.files[info.shard];
        file.read_into(info.offset + offset as u64, bytes)?;
        self.n_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        match finite::first_non_finite(info.dtype, bytes) {
            Some(at) if !self.allows_non_finite => {
                let index = offset / info.dtype.bytes() + at;
                let value = widen(info.dtype, &bytes[at * info.dtype.bytes()..][..info.dtype.bytes()])[0];
                let place = place(index, &info.shape);
                let message = format!("element {place:?} is {value}; --allow-non-finite-weights loads it all the same");
                Err(Error::tensor(&file.path, name, message))
            }
            _ => Ok(()),
        }
    }

    /// Tensor `name` widened to f32.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        Ok(widen(self.expect(name)?.dtype, &self.read(name)?))
    }

    /// An error where a file of weights was written to since it was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(Blob::check_unchanged)
    }

    fn expect(&self, name: &str) -> Result<&TensorInfo> {
        self.tensor(name).ok_or_else(|| Error::tensor(self.source.root(), name, "there is no such tensor"))
    }
}

/// Little-endian elements as f32, which holds each exactly.
pub(crate) fn widen(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}

/// Where element `index` stands in a tensor of `shape`.
fn place(index: usize, shape: &[usize]) -> Vec<usize> {
    let mut place = shape.to_vec();
    place.iter_mut().rev().fold(index, |rest, n| {
        let (outer, own) = (rest / *n, rest % *n);
        *n = own;
        outer
    });
    place
}

fn tensor_info(files: &[Blob], stored: Stored) -> Result<TensorInfo> {
    let Stored { entry, shard } = stored;
    let dtype = match entry.dtype.as_str() {
        "F32" => Dtype::F32,
        "F16" => Dtype::F16,
        "BF16" => Dtype::Bf16,
        other => {
            let message = format!("dtype {other} is not supported; accepted are F32, F16 and BF16");
            return Err(Error::tensor(&files[shard].path, entry.name, message));
        }
    };
    Ok(TensorInfo { dtype, shape: entry.shape, n_bytes: entry.n_bytes, shard, offset: entry.offset })
}

/// Leaves the tensors of the text part, by the names that they have in a model of text alone.
fn keep_text(source: &Source, config: &mut ModelConfig, shards: &mut Shards) -> Result<()> {
    let mut n_others = 0;
    for (stored, tensor) in std::mem::take(&mut shards.tensors) {
        match layout::text_name(&stored) {
            None => n_others += 1,
            Some(name) if shards.tensors.contains_key(&name) => {
                return Err(Error::tensor(
                    source.root(),
                    stored,
                    format!("another tensor is the text part's {name:?} too"),
                ));
            }
            Some(name) => {
                shards.tensors.insert(name, tensor);
            }
        }
    }
    if n_others > 0 {
        config.warnings.push(format!("text only: the {n_others} tensors that see images are not read"));
    }
    Ok(())
}

/// Names the first tensors that are missing, misshapen or not asked for.
fn check_layout(source: &Source, config: &ModelConfig, shards: &Shards) -> Result<()> {
    let expected = layout::expected(config);
    let mut differences = Vec::new();
    for tensor in &expected {
        match shards.tensors.get(&tensor.name) {
            None => differences.push((&tensor.name, format!("missing, shape {:?} is needed", tensor.shape))),
            Some(stored) if stored.entry.shape != tensor.shape => {
                let found = &stored.entry.shape;
                differences.push((&tensor.name, format!("shape {found:?}, config.json asks for {:?}", tensor.shape)));
            }
            Some(_) => {}
        }
    }
    let known: std::collections::HashSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
    let extra = shards.tensors.keys().filter(|name| !known.contains(name.as_str()));
    for name in extra.filter(|name| !layout::is_known_extra(name)) {
        differences.push((name, "config.json does not ask for it".to_string()));
    }
    let Some((first, what)) = differences.first() else { return Ok(()) };
    let listed = differences.iter().take(MAX_LISTED).skip(1).map(|(name, what)| format!("\n  {name:?}: {what}"));
    let more = differences.len().saturating_sub(MAX_LISTED);
    let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
    Err(Error::tensor(source.root(), *first, format!("{what}{}{more}", listed.collect::<String>())))
}
