//! A model without files: the shape of a published one, its weights made from a seed as they are read.
//!
//! It goes the way of every other model, header, checks and all; only that its bytes come from a formula. Weights are
//! uniform in sign and mantissa, between 2^-7 and 2^-5: finite everywhere, and a forward pass over them stays so.

use super::config::ModelConfig;
use super::layout;
use super::shapes::Shape;
use super::source::Source;
use crate::Result;
use crate::backend::Dtype;
use serde_json::{Map, json};

/// A shape and the seed of its weights: two seeds give weights that differ everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Made {
    /// The shape.
    pub shape: &'static Shape,
    /// The seed.
    pub seed: u64,
}

/// The bytes of model.safetensors.
#[derive(Debug)]
pub(super) struct MadeWeights {
    /// Length and header, as they stand in a file: a multiple of eight bytes.
    head: Vec<u8>,
    n_bytes: u64,
    /// Where in SplitMix64's sequence the weights begin: a place that every bit of the seed has a part in, so that two
    /// seeds begin far apart.
    start: u64,
    /// Bits of a word of noise that stay, and bits that are set.
    masks: [u64; 2],
}

impl Made {
    /// The name that stands for the directory.
    pub(super) fn name(&self) -> String {
        format!("{} (made, seed {})", self.shape.name, self.seed)
    }

    /// config.json.
    pub(super) fn config(&self) -> Vec<u8> {
        self.shape.config().to_string().into_bytes()
    }

    /// tokenizer.json: as many ids as the model has columns, each named by its number.
    pub(super) fn tokenizer(&self) -> Vec<u8> {
        let vocab: Map<_, _> = (0..self.shape.n_vocab).map(|id| (id.to_string(), json!(id))).collect();
        json!({
            "added_tokens": [],
            "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
            "model": { "type": "BPE", "vocab": vocab, "merges": [] },
        })
        .to_string()
        .into_bytes()
    }

    /// model.safetensors.
    pub(super) fn weights(&self) -> Result<MadeWeights> {
        let config = ModelConfig::read(&Source::Made(self.clone()))?;
        let (mut header, mut end) = (Map::new(), 0);
        // Per 16-bit lane: sign and mantissa stay, and the exponent is one of two.
        let (name, masks) = match self.shape.dtype {
            Dtype::F32 => ("F32", [0x80FF_FFFF_80FF_FFFF, 0x3C00_0000_3C00_0000]),
            Dtype::F16 => ("F16", [0x87FF_87FF_87FF_87FF, 0x2000_2000_2000_2000]),
            Dtype::Bf16 => ("BF16", [0x80FF_80FF_80FF_80FF, 0x3C00_3C00_3C00_3C00]),
        };
        for tensor in layout::expected(&config) {
            let n_bytes = tensor.shape.iter().product::<usize>() * self.shape.dtype.bytes();
            let entry = json!({ "dtype": name, "shape": tensor.shape, "data_offsets": [end, end + n_bytes] });
            header.insert(tensor.name, entry);
            end += n_bytes;
        }
        let mut text = serde_json::Value::from(header).to_string();
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        let head = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        Ok(MadeWeights { n_bytes: (head.len() + end) as u64, head, start: split_mix(self.seed), masks })
    }
}

impl MadeWeights {
    pub(super) fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Fills `bytes` from byte `offset` on; the caller holds both inside [`Self::n_bytes`].
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) {
        let n_head = (self.head.len() as u64).saturating_sub(offset).min(bytes.len() as u64) as usize;
        let (head, data) = bytes.split_at_mut(n_head);
        if n_head > 0 {
            head.copy_from_slice(&self.head[offset as usize..][..n_head]);
        }
        let from = offset + n_head as u64;
        let skipped = (from % 8) as usize;
        // The head is whole words, so words of data are aligned in the file.
        let (first, rest) = data.split_at_mut(if skipped == 0 { 0 } else { (8 - skipped).min(data.len()) });
        first.copy_from_slice(&self.word(from / 8)[skipped..][..first.len()]);
        let mut index = from.div_ceil(8);
        let mut words = rest.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.word(index));
            index += 1;
        }
        let last = words.into_remainder();
        last.copy_from_slice(&self.word(index)[..last.len()]);
    }

    /// Eight bytes of weights.
    #[inline(always)]
    fn word(&self, index: u64) -> [u8; 8] {
        let [keep, set] = self.masks;
        ((split_mix(index.wrapping_add(self.start)) & keep) | set).to_le_bytes()
    }
}

/// SplitMix64's number at a place of its sequence.
#[inline(always)]
fn split_mix(place: u64) -> u64 {
    let place = place.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (place ^ (place >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::shapes::SHAPES;
    use super::*;
    use crate::checkpoint::Checkpoint;

    #[test]
    fn weights_are_finite_differ_by_seed_and_read_alike_in_any_pieces() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let shape: &'static Shape = Box::leak(Box::new(Shape { dtype, name: "test", ..SHAPES[0] }));
            let open = |seed| Checkpoint::open(Source::made(shape, seed)).expect("it opens");
            let one = open(1);
            // What differs in the lowest bits, in those above 16, and in the highest.
            for other in [2, 1 + (1 << 16), 1 + (1 << 63)].map(open) {
                for (name, info) in one.tensors() {
                    assert_eq!(info.dtype, dtype);
                    let [a, b] = [&one, &other].map(|checkpoint| checkpoint.read_f32(name).expect("it can be read"));
                    let range = 2f32.powi(-7)..2f32.powi(-5);
                    assert!(a.iter().chain(&b).all(|x| range.contains(&x.abs())), "{name}");
                    let n_equal = a.iter().zip(&b).filter(|(a, b)| a == b).count();
                    // Equal by chance: once in 512 at the coarsest, bf16, which has 9 random bits.
                    assert!(n_equal <= a.len() / 64 + 2, "{name}: {n_equal} of {} are equal", a.len());
                }
            }
            let made = Made { shape, seed: 1 }.weights().expect("weights");
            let n = made.head.len() + 100;
            let mut whole = vec![0; n];
            made.read(0, &mut whole);
            for start in made.head.len() - 9..n {
                for end in start..n {
                    let mut piece = vec![0; end - start];
                    made.read(start as u64, &mut piece);
                    assert_eq!(piece, whole[start..end], "{start}..{end}");
                }
            }
        }
    }
}
