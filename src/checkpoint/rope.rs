//! Rotary positions: what config.json says of them, and the inverse frequencies they come to.

use super::fields::Fields;
use crate::Result;
use std::f64::consts::PI;

/// Rotary positions of one model.
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
}

impl Rope {
    /// From `rope_scaling` or `rope_parameters`, in transformers' order of preference; `rope_theta` may stand inside or
    /// beside.
    pub(super) fn from_config(fields: &Fields, max_positions: usize) -> Result<Self> {
        let nested = match fields.object("rope_scaling")? {
            Some(object) => Some(object),
            None => fields.object("rope_parameters")?,
        };
        let outside = theta(fields)?;
        let inside = nested.as_ref().map(theta).transpose()?.flatten();
        let theta = inside.or(outside).unwrap_or(10_000.0);
        let scaling = nested.map_or(Ok(RopeScaling::None), |n| scaling(&n, max_positions))?;
        Ok(Rope { theta, scaling })
    }

    /// `head_dim / 2` inverse frequencies as transformers computes them, which is in f32 at every step: these are the
    /// numbers the published weights were trained with.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f64> {
        assert!(head_dim.is_multiple_of(2), "rotary positions turn pairs");
        let plain = (0..head_dim).step_by(2).map(|i| {
            let exponent = i as f32 / head_dim as f32;
            let power = self.theta.powf(f64::from(exponent)) as f32;
            1.0 / power
        });
        plain.map(|frequency| f64::from(self.stretch(frequency))).collect()
    }

    fn stretch(&self, frequency: f32) -> f32 {
        let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } = self.scaling
        else {
            return frequency;
        };
        let original = original_max_positions as f64;
        // Scalars are doubles rounded where they meet the f32 tensor, as in torch.
        let wavelength = (2.0 * PI) as f32 / frequency;
        if wavelength < (original / high_freq_factor) as f32 {
            return frequency;
        }
        if wavelength > (original / low_freq_factor) as f32 {
            return frequency / factor as f32;
        }
        let smooth =
            (original as f32 / wavelength - low_freq_factor as f32) / (high_freq_factor - low_freq_factor) as f32;
        (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
    }
}

/// Below 1 the series would grow, and far above any published base it would leave f32.
fn theta(fields: &Fields) -> Result<Option<f64>> {
    match fields.number("rope_theta")? {
        Some(theta) if !(1.0..=1e15).contains(&theta) => {
            Err(fields.error("rope_theta", format!("{theta}, must be from 1 to 1e15")))
        }
        other => Ok(other),
    }
}

fn scaling(nested: &Fields, max_positions: usize) -> Result<RopeScaling> {
    if nested.number("partial_rotary_factor")?.is_some_and(|x| x != 1.0) {
        return Err(nested.error("partial_rotary_factor", "other than 1 is not supported"));
    }
    let (field, kind) = match nested.text("rope_type")? {
        Some(kind) => ("rope_type", Some(kind)),
        None => ("type", nested.text("type")?),
    };
    match kind {
        None | Some("default") => Ok(RopeScaling::None),
        Some("llama3") => llama3(nested, max_positions),
        Some(other) => Err(nested.error(field, format!("{other:?} is not supported; accepted are default and llama3"))),
    }
}

fn llama3(nested: &Fields, max_positions: usize) -> Result<RopeScaling> {
    let required = |name: &str| nested.positive(name)?.ok_or_else(|| nested.error(name, "missing, must be above 0"));
    let (factor, low, high) = (required("factor")?, required("low_freq_factor")?, required("high_freq_factor")?);
    if factor < 1.0 {
        return Err(nested.error("factor", format!("{factor}, must be at least 1")));
    }
    // As f32, which is what divides by their difference.
    if high as f32 <= low as f32 {
        return Err(nested.error("high_freq_factor", format!("{high}, must be above low_freq_factor {low}")));
    }
    let original = nested.count("original_max_position_embeddings", 1 << 24)?;
    Ok(RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_positions: original.unwrap_or(max_positions),
    })
}
