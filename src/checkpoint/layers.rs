//! What differs from layer to layer: how far back each sees, and its rotary positions.

use super::family::{Facts, Family, LayerTypes};
use super::fields::Fields;
use super::rope::{Rope, RopeReader};
use crate::Result;
use serde_json::Value;

/// One layer's own settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerKind {
    /// Rotary positions; absent: none in this layer.
    pub rope: Option<Rope>,
    /// Positions seen, the own one among them. 0: all.
    pub window: u32,
}

/// Every layer of a model.
pub(super) fn layers(
    fields: &Fields,
    facts: &Facts,
    types: LayerTypes,
    n_layers: usize,
    max_positions: usize,
) -> Result<Vec<LayerKind>> {
    let turned = layers_with_rope(fields, facts.family, n_layers)?;
    let windows = windows(fields, facts.family, types, &turned)?;
    let reader = RopeReader { fields, theta: facts.theta, max_positions };
    let [local, global] = match facts.family {
        Family::Gemma3 => reader.local_and_global()?,
        _ => [reader.of_all_layers()?; 2],
    };
    let rope = |window: u32| if window > 0 { local } else { global };
    let kind = |(turned, window): (&bool, u32)| LayerKind { rope: turned.then(|| rope(window)), window };
    Ok(turned.iter().zip(windows).map(kind).collect())
}

/// Which layers have rotary positions: all, but for SmolLM3's.
fn layers_with_rope(fields: &Fields, family: Family, n_layers: usize) -> Result<Vec<bool>> {
    if family != Family::SmolLM3 {
        return Ok(vec![true; n_layers]);
    }
    let Some(list) = fields.get("no_rope_layers") else {
        let interval = fields.count("no_rope_layer_interval", usize::MAX)?.unwrap_or(4);
        return Ok((1..=n_layers).map(|layer| !layer.is_multiple_of(interval)).collect());
    };
    // In spite of its name, 1 is a layer with rotary positions.
    let turned = |value: &Value| value.as_u64().filter(|&n| n <= 1).map(|n| n == 1);
    let layers = list.as_array().map(|list| list.iter().map(turned).collect::<Option<Vec<_>>>());
    match layers.flatten() {
        Some(mut layers) if layers.len() >= n_layers => {
            layers.truncate(n_layers);
            Ok(layers)
        }
        _ => Err(fields.error("no_rope_layers", format!("must be a list of 0 and 1 for each of {n_layers} layers"))),
    }
}

/// The window of each layer, 0 for all positions; `turned` says which layers have rotary positions.
fn windows(fields: &Fields, family: Family, types: LayerTypes, turned: &[bool]) -> Result<Vec<u32>> {
    let n_layers = turned.len();
    let window = match family {
        Family::Llama | Family::Olmo2 | Family::Granite => return Ok(vec![0; n_layers]),
        Family::Qwen2 | Family::Qwen3 | Family::SmolLM3 if !fields.flag("use_sliding_window")?.unwrap_or(false) => None,
        Family::Ministral3 | Family::SmolLM3 => fields.count("sliding_window", u32::MAX as usize)?,
        _ if fields.is_null("sliding_window") => None,
        _ => Some(fields.count("sliding_window", u32::MAX as usize)?.unwrap_or(4_096)),
    };
    let listed = match types {
        LayerTypes::Read => layer_types(fields, n_layers)?,
        LayerTypes::Ignored => None,
    };
    let slides = match (&listed, family) {
        (Some(slides), _) => slides.clone(),
        (None, Family::Gemma2) => (0..n_layers).map(|layer| layer.is_multiple_of(2)).collect(),
        (None, Family::Gemma3) => {
            let pattern = fields.count("sliding_window_pattern", usize::MAX)?.unwrap_or(6);
            (1..=n_layers).map(|layer| !layer.is_multiple_of(pattern)).collect()
        }
        (None, _) if window.is_none() => vec![false; n_layers],
        (None, Family::Qwen2 | Family::Qwen3) => {
            let first = fields.whole("max_window_layers", usize::MAX)?.unwrap_or(28);
            (0..n_layers).map(|layer| layer >= first).collect()
        }
        (None, Family::SmolLM3) => turned.iter().map(|turned| !turned).collect(),
        (None, _) => vec![true; n_layers],
    };
    if window.is_none() && slides.contains(&true) {
        let (field, why) = match listed {
            Some(_) => ("layer_types", "asks for sliding_attention, and no sliding_window is in use"),
            None => ("sliding_window", "null, but layers of this family slide; say so in layer_types if not"),
        };
        return Err(fields.error(field, why));
    }
    let window = window.unwrap_or(0) as u32;
    Ok(slides.into_iter().map(|slides| if slides { window } else { 0 }).collect())
}

/// Which layers slide, where `layer_types` lists them.
fn layer_types(fields: &Fields, n_layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(value) = fields.get("layer_types") else { return Ok(None) };
    let slides = |value: &Value| match value.as_str() {
        Some("sliding_attention") => Some(true),
        Some("full_attention") => Some(false),
        _ => None,
    };
    let layers = value.as_array().map(|list| list.iter().map(slides).collect::<Option<Vec<_>>>());
    match layers.flatten() {
        Some(layers) if layers.len() == n_layers => Ok(Some(layers)),
        _ => {
            let message = format!("must be full_attention or sliding_attention for each of {n_layers} layers");
            Err(fields.error("layer_types", message))
        }
    }
}
