//! Fields of a model's JSON files, read with their name and range in every error.

use super::source::Source;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::fmt::Display;
use std::path::PathBuf;

/// Configurations are a few KiB; tokenizer_config.json with many added tokens reaches some MiB.
const MAX_BYTES: u64 = 16 << 20;

/// One JSON object of a file.
pub(crate) struct Fields {
    path: PathBuf,
    /// Dotted path of this object in the file, with the dot, or empty.
    prefix: String,
    object: Map<String, Value>,
}

impl Fields {
    /// The object in `file`, or `None` where there is no such file.
    pub(crate) fn read(source: &Source, file: &str) -> Result<Option<Self>> {
        let Some(text) = source.read(file, MAX_BYTES)? else { return Ok(None) };
        let path = source.path(file);
        match serde_json::from_slice(&text).map_err(|e| Error::file(&path, e))? {
            Value::Object(object) => Ok(Some(Fields { path, prefix: String::new(), object })),
            _ => Err(Error::file(path, "not a JSON object")),
        }
    }

    /// The value of `name`; null is the same as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.object.get(name).filter(|v| !v.is_null())
    }

    /// Whether `name` is there and null, which is not the same as absent where a default would hold.
    pub(crate) fn is_null(&self, name: &str) -> bool {
        self.object.get(name).is_some_and(Value::is_null)
    }

    /// The [`Error::Config`] of field `name`.
    pub(crate) fn error(&self, name: &str, message: impl Display) -> Error {
        Error::config(&self.path, format!("{}{name}", self.prefix), message)
    }

    /// A nested object.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Fields>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(object)) => {
                let prefix = format!("{}{name}.", self.prefix);
                Ok(Some(Fields { path: self.path.clone(), prefix, object: object.clone() }))
            }
            Some(other) => Err(self.error(name, format!("{}, must be an object", short(other)))),
        }
    }

    /// Whether the object holds nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.object.is_empty()
    }

    /// A whole number from 1 to `max`.
    pub(crate) fn count(&self, name: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=max).contains(&n) => Ok(Some(n)),
            _ => Err(self.error(name, format!("{}, must be a whole number from 1 to {max}", short(value)))),
        }
    }

    /// As [`Fields::count`], or 0.
    pub(crate) fn whole(&self, name: &str, max: usize) -> Result<Option<usize>> {
        match self.get(name) {
            Some(value) if value.as_u64() == Some(0) => Ok(Some(0)),
            _ => self.count(name, max),
        }
    }

    /// As [`Fields::count`], for a field that must be there.
    pub(crate) fn required_count(&self, name: &str, max: usize) -> Result<usize> {
        self.count(name, max)?.ok_or_else(|| self.error(name, format!("missing, must be 1 to {max}")))
    }

    /// A finite number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.as_f64().filter(|x| x.is_finite());
        number.map(Some).ok_or_else(|| self.error(name, format!("{}, must be a finite number", short(value))))
    }

    /// A finite number above zero.
    pub(crate) fn positive(&self, name: &str) -> Result<Option<f64>> {
        match self.number(name)? {
            Some(x) if x <= 0.0 => Err(self.error(name, format!("{x}, must be above 0"))),
            other => Ok(other),
        }
    }

    /// True or false.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.error(name, format!("{}, must be true or false", short(value))))
    }

    /// A string.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.error(name, format!("{}, must be a string", short(value))))
    }

    /// A token id, or a list of them.
    pub(crate) fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match self.get(name) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            // -1 is how old exports say "none".
            Some(one) if one.as_i64() == Some(-1) => Some(Vec::new()),
            Some(one) => id(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.error(name, "must be a token id or a list of them"))
    }
}

/// A value as a message shows it: quoted, and cut where it is long.
fn short(value: &Value) -> String {
    let text: String = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
