//! generation_config.json: the publisher's wishes. Its stop ids are used; its sampling values are shown, not applied.

use super::fields::Fields;
use super::source::Source;
use crate::Result;
use serde::Serialize;

/// What generation_config.json says; all empty where there is no such file.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GenerationConfig {
    /// `eos_token_id`, one or a list.
    pub eos_ids: Vec<u32>,
    /// `bos_token_id`.
    pub bos_id: Option<u32>,
    /// Whether the publisher samples at all.
    pub do_sample: Option<bool>,
    /// `temperature`.
    pub temperature: Option<f64>,
    /// `top_k`.
    pub top_k: Option<f64>,
    /// `top_p`.
    pub top_p: Option<f64>,
    /// `min_p`.
    pub min_p: Option<f64>,
    /// `repetition_penalty`.
    pub repetition_penalty: Option<f64>,
}

impl GenerationConfig {
    /// Reads generation_config.json of `source`.
    pub fn read(source: &Source) -> Result<Self> {
        let Some(fields) = Fields::read(source, "generation_config.json")? else { return Ok(Self::default()) };
        Ok(GenerationConfig {
            eos_ids: fields.ids("eos_token_id")?,
            bos_id: fields.ids("bos_token_id")?.first().copied(),
            do_sample: fields.flag("do_sample")?,
            temperature: fields.number("temperature")?,
            top_k: fields.number("top_k")?,
            top_p: fields.number("top_p")?,
            min_p: fields.number("min_p")?,
            repetition_penalty: fields.number("repetition_penalty")?,
        })
    }
}
