//! Rotary positions: what config.json says of them, and the inverse frequencies they come to.

use super::fields::Fields;
use crate::Result;
use std::f64::consts::PI;

/// Rotary positions of one kind of layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of frequencies.
    pub theta: f64,
    /// How the frequencies were stretched for longer texts.
    pub scaling: RopeScaling,
}

/// Stretching of the frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// As they are.
    None,
    /// All divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Waves longer than `original_max_positions / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Waves shorter than `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Length the model was first trained at.
        original_max_positions: usize,
    },
    /// Yarn: as Llama 3.1 with a ramp over the pairs' indices, and q and k made longer.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Length the model was first trained at.
        original_max_positions: usize,
        /// Pairs that turn more often than this over that length are kept.
        beta_fast: f64,
        /// Pairs that turn less often than this are divided.
        beta_slow: f64,
        /// Factor of q and of k.
        attention_factor: f64,
        /// Whether the ramp begins and ends at whole indices.
        truncate: bool,
    },
}

impl RopeScaling {
    /// The name that config.json has for it.
    pub fn name(&self) -> &'static str {
        match self {
            RopeScaling::None => "default",
            RopeScaling::Linear { .. } => "linear",
            RopeScaling::Llama3 { .. } => "llama3",
            RopeScaling::Yarn { .. } => "yarn",
        }
    }

    /// How much longer texts may be.
    pub fn factor(&self) -> f64 {
        match *self {
            RopeScaling::None => 1.0,
            RopeScaling::Linear { factor } | RopeScaling::Llama3 { factor, .. } | RopeScaling::Yarn { factor, .. } => {
                factor
            }
        }
    }
}

impl Rope {
    /// `head_dim / 2` inverse frequencies as transformers computes them, which is in f32 at every step: these are the
    /// numbers the published weights were trained with.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f64> {
        assert!(head_dim.is_multiple_of(2), "rotary positions turn pairs");
        let powers = (0..head_dim).step_by(2).map(|i| {
            let exponent = i as f32 / head_dim as f32;
            self.theta.powf(f64::from(exponent)) as f32
        });
        let ramp = self.yarn_ramp(head_dim);
        powers.enumerate().map(|(pair, power)| f64::from(self.stretch(pair, power, ramp))).collect()
    }

    /// Factor of the cosines and sines.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }

    /// Scalars are doubles rounded where they meet an f32 tensor, as in torch.
    fn stretch(&self, pair: usize, power: f32, [first, last]: [f64; 2]) -> f32 {
        let frequency = 1.0 / power;
        match self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor as f32,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let original = original_max_positions as f64;
                let wavelength = (2.0 * PI) as f32 / frequency;
                if wavelength < (original / high_freq_factor) as f32 {
                    return frequency;
                }
                if wavelength > (original / low_freq_factor) as f32 {
                    return frequency / factor as f32;
                }
                let smooth = (original as f32 / wavelength - low_freq_factor as f32)
                    / (high_freq_factor - low_freq_factor) as f32;
                (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
            }
            RopeScaling::Yarn { factor, .. } => {
                let kept = 1.0 - ((pair as f32 - first as f32) / (last - first) as f32).clamp(0.0, 1.0);
                1.0 / (factor as f32 * power) * (1.0 - kept) + frequency * kept
            }
        }
    }

    /// The pairs where yarn's ramp begins and ends.
    fn yarn_ramp(&self, head_dim: usize) -> [f64; 2] {
        let RopeScaling::Yarn { original_max_positions, beta_fast, beta_slow, truncate, .. } = self.scaling else {
            return [0.0, 1.0];
        };
        let pair_that_turns = |times: f64| {
            let wavelength = original_max_positions as f64 / (times * 2.0 * PI);
            head_dim as f64 * wavelength.ln() / (2.0 * self.theta.ln())
        };
        let (first, last) = (pair_that_turns(beta_fast), pair_that_turns(beta_slow));
        let (first, last) = if truncate { (first.floor(), last.ceil()) } else { (first, last) };
        let (first, last) = (first.max(0.0), last.min(head_dim as f64 - 1.0));
        [first, if first == last { last + 0.001 } else { last }]
    }
}

/// Reads rotary positions, with what they fall back on.
pub(super) struct RopeReader<'a> {
    pub(super) fields: &'a Fields,
    /// The family's own base.
    pub(super) theta: f64,
    pub(super) max_positions: usize,
}

/// Kinds of layers whose rotary positions may differ.
const KINDS: [&str; 2] = ["sliding_attention", "full_attention"];
/// Gemma 3's own bases, of these kinds.
const BASES: [f64; 2] = [10_000.0, 1_000_000.0];

impl RopeReader<'_> {
    /// From `rope_scaling` or `rope_parameters`, in transformers' order of preference; `rope_theta` may stand inside or
    /// beside.
    pub(super) fn of_all_layers(&self) -> Result<Rope> {
        let nested = settings(self.fields)?;
        if let Some(nested) = &nested
            && let Some(kind) = KINDS.into_iter().find(|kind| nested.get(kind).is_some())
        {
            return Err(nested.error(kind, "this family has one kind of rotary positions"));
        }
        self.rope(nested.as_ref(), theta(self.fields, "rope_theta")?.unwrap_or(self.theta))
    }

    /// Gemma 3's two, of layers with a window and of the others; `rope_scaling` is of the others.
    pub(super) fn local_and_global(&self) -> Result<[Rope; 2]> {
        let fields = self.fields;
        let (scaling, parameters) = (scaling(fields)?, fields.object("rope_parameters")?);
        let kinds = match &parameters {
            None => [None, None],
            Some(parameters) => [parameters.object(KINDS[0])?, parameters.object(KINDS[1])?],
        };
        if parameters.is_some() && kinds.iter().all(Option::is_none) {
            return Err(fields.error("rope_parameters", format!("must hold {} and {}", KINDS[0], KINDS[1])));
        }
        let [local, global] = kinds;
        if scaling.is_some() && global.is_some() {
            return Err(fields.error("rope_scaling", format!("contradicts rope_parameters.{}", KINDS[1])));
        }
        let local_theta = theta(fields, "rope_local_base_freq")?.unwrap_or(BASES[0]);
        let global_theta = theta(fields, "rope_theta")?.unwrap_or(BASES[1]);
        Ok([self.rope(local.as_ref(), local_theta)?, self.rope(global.or(scaling).as_ref(), global_theta)?])
    }

    fn rope(&self, nested: Option<&Fields>, outside: f64) -> Result<Rope> {
        let Some(nested) = nested else { return Ok(Rope { theta: outside, scaling: RopeScaling::None }) };
        let theta = theta(nested, "rope_theta")?.unwrap_or(outside);
        Ok(Rope { theta, scaling: self.scaling(nested, theta)? })
    }

    fn scaling(&self, nested: &Fields, theta: f64) -> Result<RopeScaling> {
        if nested.number("partial_rotary_factor")?.is_some_and(|x| x != 1.0) {
            return Err(nested.error("partial_rotary_factor", "other than 1 is not supported"));
        }
        let (field, kind) = match nested.text("rope_type")? {
            Some(kind) => ("rope_type", Some(kind)),
            None => ("type", nested.text("type")?),
        };
        match kind {
            None | Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: factor(nested)? }),
            Some("llama3") => self.llama3(nested),
            Some("yarn") => self.yarn(nested, theta),
            Some(other) => {
                let message = format!("{other:?} is not supported; accepted are default, linear, llama3 and yarn");
                Err(nested.error(field, message))
            }
        }
    }

    fn llama3(&self, nested: &Fields) -> Result<RopeScaling> {
        let (factor, low, high) =
            (factor(nested)?, required(nested, "low_freq_factor")?, required(nested, "high_freq_factor")?);
        // As f32, which is what divides by their difference.
        if high as f32 <= low as f32 {
            return Err(nested.error("high_freq_factor", format!("{high}, must be above low_freq_factor {low}")));
        }
        Ok(RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_positions: self.original(nested)?,
        })
    }

    fn yarn(&self, nested: &Fields, theta: f64) -> Result<RopeScaling> {
        if theta == 1.0 {
            return Err(nested.error("rope_theta", "1, must be above 1 for yarn"));
        }
        let factor = factor(nested)?;
        // Zero means unsaid here, as it does in transformers.
        let unless_zero = |name| nested.number(name).map(|number| number.filter(|&x| x != 0.0));
        let (fast, slow) = (unless_zero("beta_fast")?.unwrap_or(32.0), unless_zero("beta_slow")?.unwrap_or(1.0));
        if slow < 1e-3 || !(slow..=1e6).contains(&fast) {
            let message = format!("{fast}, must be from beta_slow, {slow}, to 1e6, and beta_slow at least 0.001");
            return Err(nested.error("beta_fast", message));
        }
        let length = |scale: f64| 0.1 * scale * factor.ln() + 1.0;
        let scales = (unless_zero("mscale")?, unless_zero("mscale_all_dim")?);
        let attention_factor = match (nested.positive("attention_factor")?, scales) {
            (Some(said), _) => said,
            (None, (Some(scale), Some(all))) => length(scale) / length(all),
            (None, _) => length(1.0),
        };
        if !(1e-3..=1e3).contains(&attention_factor) {
            let message = format!("comes to {attention_factor}, must be from 0.001 to 1000");
            return Err(nested.error("attention_factor", message));
        }
        Ok(RopeScaling::Yarn {
            factor,
            original_max_positions: self.original(nested)?,
            beta_fast: fast,
            beta_slow: slow,
            attention_factor,
            truncate: nested.flag("truncate")?.unwrap_or(true),
        })
    }

    /// Length the model was first trained at: said beside, inside, or the longest.
    fn original(&self, nested: &Fields) -> Result<usize> {
        let name = "original_max_position_embeddings";
        let beside = self.fields.count(name, 1 << 24)?;
        Ok(beside.or(nested.count(name, 1 << 24)?).unwrap_or(self.max_positions))
    }
}

/// Factor of q that grows with the position: `1 + beta ln(1 + floor(position / length))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QGrowth {
    /// How fast.
    pub beta: f32,
    /// Positions until it grows.
    pub length: u32,
}

impl QGrowth {
    /// `llama_4_scaling_beta` among the settings of `rope`.
    pub(super) fn read(fields: &Fields, rope: Option<Rope>) -> Result<Self> {
        const BETA: &str = "llama_4_scaling_beta";
        let Some(nested) = settings(fields)? else {
            return Err(fields.error("rope_parameters", format!("missing, {BETA} is needed")));
        };
        let beta = nested.number(BETA)?.ok_or_else(|| nested.error(BETA, "missing, must be from 0 to 1000"))?;
        if !(0.0..=1e3).contains(&beta) {
            return Err(nested.error(BETA, format!("{beta}, must be from 0 to 1000")));
        }
        let length = match rope.map(|rope| rope.scaling) {
            Some(
                RopeScaling::Yarn { original_max_positions, .. } | RopeScaling::Llama3 { original_max_positions, .. },
            ) => original_max_positions,
            _ => nested.required_count("original_max_position_embeddings", 1 << 24)?,
        };
        Ok(Self { beta: beta as f32, length: length as u32 })
    }
}

fn settings(fields: &Fields) -> Result<Option<Fields>> {
    Ok(match scaling(fields)? {
        Some(object) => Some(object),
        None => fields.object("rope_parameters")?,
    })
}

/// `rope_scaling`. transformers takes an empty one for none.
fn scaling(fields: &Fields) -> Result<Option<Fields>> {
    Ok(fields.object("rope_scaling")?.filter(|object| !object.is_empty()))
}

fn required(nested: &Fields, name: &str) -> Result<f64> {
    nested.positive(name)?.ok_or_else(|| nested.error(name, "missing, must be above 0"))
}

fn factor(nested: &Fields) -> Result<f64> {
    match required(nested, "factor")? {
        factor if (1.0..=1e6).contains(&factor) => Ok(factor),
        factor => Err(nested.error("factor", format!("{factor}, must be at least 1 and at most 1e6"))),
    }
}

/// Below 1 the series would grow, and far above any published base it would leave f32.
fn theta(fields: &Fields, name: &str) -> Result<Option<f64>> {
    match fields.number(name)? {
        Some(theta) if !(1.0..=1e15).contains(&theta) => {
            Err(fields.error(name, format!("{theta}, must be from 1 to 1e15")))
        }
        other => Ok(other),
    }
}
