//! What cannot be avoided: every step reads the weights of its models once, and each text's keys and values.

use super::Setting;
use crate::backend::Dtype;
use crate::engine::plan::ModelBytes;
use crate::engine::trio::Trio;

/// Bytes of the three models.
pub(super) struct Floor {
    pub(super) models: [ModelBytes; 3],
}

/// Bytes that a setting must read.
#[derive(Clone, Copy)]
pub(super) struct Bytes {
    /// A step that decodes, on average over the output.
    pub(super) step: f64,
    /// The whole text, its prompt taken in one step.
    pub(super) text: f64,
}

impl Floor {
    pub(super) fn new(trio: &Trio, kv_cache_dtype: Option<Dtype>) -> Self {
        let checkpoints = trio.models().checkpoint_of_role();
        Self { models: checkpoints.map(|checkpoint| ModelBytes::of(checkpoint, kv_cache_dtype)) }
    }

    /// The base alone.
    pub(super) fn base(&self, setting: Setting) -> Bytes {
        bytes(&self.models[..1], setting)
    }

    /// All three.
    pub(super) fn trio(&self, setting: Setting) -> Bytes {
        bytes(&self.models, setting)
    }
}

fn bytes(models: &[ModelBytes], Setting { prompt, output, batch }: Setting) -> Bytes {
    let weights: u64 = models.iter().map(|model| model.read_per_step).sum();
    let kv_per_token: u64 = models.iter().map(|model| model.kv_per_token).sum();
    // The first token comes from the prompt's step; step i of the others looks back on prompt + i tokens.
    let n_steps = output - 1;
    let mean_context = prompt as f64 + (n_steps + 1) as f64 / 2.0;
    let step = weights as f64 + batch as f64 * mean_context * kv_per_token as f64;
    Bytes { step, text: weights as f64 + n_steps as f64 * step }
}
