//! From flags to open models and to an engine's options: what every command that touches models shares.

use super::args::{ChatModelArgs, DeviceArgs, ModelArgs, ShapedArgs, StepArgs};
use super::hub::Places;
use super::{demo, output};
use crate::checkpoint::hub::Weights;
use crate::checkpoint::{Checkpoint, Source};
use crate::engine::EngineOptions;
use crate::engine::request::Draft;
use crate::engine::trio::{Models, Trio, TrioSources};
use crate::text::vocabulary::ROLES;
use crate::{Error, Result};
use std::borrow::Borrow;
use std::sync::Arc;

impl ModelArgs {
    /// Whether any model is named.
    pub(super) fn names_models(&self) -> bool {
        self.demo || self.base.is_some() || self.expert.is_some() || self.anti_expert.is_some()
    }

    fn open_sources(&self, sources: &TrioSources) -> Result<Models> {
        let mut models = Models::open(sources)?;
        if self.allow_non_finite_weights {
            models.allow_non_finite_weights();
        }
        Ok(models)
    }

    /// The models, combined; what may matter to a person goes to standard error.
    fn combine(&self, models: Models) -> Result<Arc<Trio>> {
        warnings(&models).iter().for_each(|warning| output::warn(warning));
        let trio = Trio::combine(models, &self.id_policy)?;
        trio.warnings().iter().for_each(|warning| output::warn(warning));
        Ok(Arc::new(trio))
    }

    fn sources(&self, weights: Weights) -> Result<TrioSources> {
        if self.demo {
            return Ok(demo::sources());
        }
        let mut places = Places::new(self.revision.as_deref(), weights);
        let Some(base) = places.source(&self.base, "base_revision", &self.base_revision)? else {
            return Err(Error::argument("base", "missing: name a model directory or an id on the hub, or use --demo"));
        };
        let expert = places.source(&self.expert, "expert_revision", &self.expert_revision)?;
        let anti_expert = places.source(&self.anti_expert, "anti_expert_revision", &self.anti_expert_revision)?;
        places.check_used()?;
        Ok(TrioSources { base, expert, anti_expert })
    }
}

impl ChatModelArgs {
    /// The models named, each opened and checked by itself, with the template; to be described, not run.
    pub(super) fn describe(&self) -> Result<Models> {
        self.open(Weights::Headers)
    }

    fn open(&self, weights: Weights) -> Result<Models> {
        let mut models = self.named.open_sources(&self.named.sources(weights)?)?;
        if let Some(path) = &self.chat_template {
            models.set_chat_template(path)?;
        }
        Ok(models)
    }

    /// The models named, combined; what may matter to a person goes to standard error.
    pub(super) fn open_trio(&self) -> Result<Arc<Trio>> {
        self.named.combine(self.open(Weights::All)?)
    }
}

impl ShapedArgs {
    /// The models of [`Self::sources`], combined.
    pub(super) fn open_trio(&self, sources: &TrioSources) -> Result<Arc<Trio>> {
        match self.shape_base {
            // Made tokenizers have no stop ids, which is no news here.
            Some(_) => Ok(Arc::new(Trio::open(sources, &[])?)),
            None => self.models.combine(self.models.open_sources(sources)?),
        }
    }

    /// Where the models come from: directories, the hub, the demo, or shapes.
    pub(super) fn sources(&self, weights: Weights) -> Result<TrioSources> {
        if let (Some(base), Some(pair)) = (self.shape_base, self.shape_pair) {
            // Equal weights would be computed once: every role has its own seed.
            let [base, expert, anti] = [(base, 0), (pair, 1), (pair, 2)].map(|(shape, seed)| Source::made(shape, seed));
            return Ok(TrioSources { base, expert: Some(expert), anti_expert: Some(anti) });
        }
        self.models.sources(weights)
    }
}

/// Opens `sources` without tokenizers: the distinct checkpoints, and which of them each role uses.
pub(super) fn checkpoints(sources: &TrioSources) -> Result<(Vec<Checkpoint>, [usize; 3])> {
    let (distinct, member_of_role) = sources.distinct()?;
    let checkpoints = distinct.into_iter().map(|source| Checkpoint::open(source.clone()));
    Ok((checkpoints.collect::<Result<_>>()?, member_of_role))
}

/// Longest text, where none is asked for: models are made for more than most texts need.
const DEFAULT_MODEL_LEN: usize = 4_096;

/// Tokens of the longest text of models made for `positions`: those asked for, or a default.
pub(super) fn model_len(asked: Option<u32>, positions: usize) -> Result<usize> {
    check_model_len(asked, positions)?;
    Ok(asked.map_or(DEFAULT_MODEL_LEN.min(positions), |len| len as usize))
}

/// Refuses longer texts than the models were made for.
pub(super) fn check_model_len(asked: Option<u32>, positions: usize) -> Result<()> {
    match asked {
        Some(len) if len as usize > positions => {
            Err(Error::argument("max_model_len", format!("{len}, the models were made for {positions}")))
        }
        _ => Ok(()),
    }
}

/// Whether expert and anti-expert are one model that is not the base: most likely a slip.
pub(super) fn pair_is_one_model(models: &Models) -> bool {
    let [base, expert, anti] = models.member_of_role();
    expert == anti && expert != base
}

/// Parameters beside those of the vocabulary, whose padding says nothing about a model's size.
fn n_inner_parameters(checkpoint: &Checkpoint) -> usize {
    let shapes = checkpoint.tensors().map(|(_, tensor)| &tensor.shape);
    shapes
        .filter(|shape| shape.first() != Some(&checkpoint.config.n_vocab))
        .map(|shape| shape.iter().product::<usize>())
        .sum()
}

/// What opening the models left to say, once per model.
pub(super) fn warnings(models: &Models) -> Vec<String> {
    let mut warnings: Vec<String> = Vec::new();
    let [base, small @ ..] = models.checkpoint_of_role();
    for (checkpoint, role) in small.into_iter().zip(&ROLES[1..]) {
        if n_inner_parameters(checkpoint) > n_inner_parameters(base) {
            warnings.push(format!("{}: {role} is larger than the base; are they exchanged?", checkpoint.name));
        }
    }
    for (checkpoint, role) in models.checkpoint_of_role().into_iter().zip(models.role_texts()) {
        let said = checkpoint.config.warnings.iter().chain(&role.tokenizer.warnings);
        let said = said.map(|warning| format!("{}: {warning}", checkpoint.name));
        // Its message begins with the file.
        let template = role.template.err().map(|error| format!("{error}; chat is not possible"));
        for warning in said.chain(template) {
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
    }
    warnings
}

impl DeviceArgs {
    /// An engine with just the room that `requests` need.
    pub(super) fn engine_for<R: Borrow<Draft>>(&self, requests: &[R]) -> EngineOptions {
        self.engine(EngineOptions::sized_for(requests))
    }

    /// An engine of this size.
    pub(super) fn engine(&self, sized: EngineOptions) -> EngineOptions {
        EngineOptions {
            backend: self.backend.into(),
            device: self.device,
            threads: self.threads.map(usize::from),
            kernels: self.kernels.sources(),
            kv_cache_dtype: self.kv_cache_dtype.dtype(),
            kv_cache_bytes: self.kv_cache_memory_bytes,
            memory_utilization: self.gpu_memory_utilization.unwrap_or(sized.memory_utilization),
            ..sized
        }
    }
}

impl StepArgs {
    /// The engine with at most so much at a time.
    pub(super) fn bound(&self, sized: EngineOptions) -> EngineOptions {
        EngineOptions {
            n_slots: sized.n_slots.min(self.max_num_seqs.map_or(usize::MAX, usize::from)),
            prefill_rows: self.chunked_prefill_size.map_or(sized.prefill_rows, usize::from),
            ..sized
        }
    }
}
