//! `--config FILE.toml`: a table of flags, and a table per command for what holds for that one alone.

use super::{Given, Layers, Place, Takes, did_you_mean, flag_named, long, typed};
use crate::{Error, Result};
use clap::{Arg, Command};
use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longest file, in bytes: a person wrote it.
const MAX_BYTES: u64 = 1 << 20;

/// What the file gives the command: first its own table, then what holds for all.
pub(super) fn layers<'a>(layers: &Layers<'a>, path: &Path) -> Result<[Vec<Given<'a>>; 2]> {
    let text = read(path)?;
    let file = File { path, text: &text };
    let table = DeTable::parse(&text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        file.place(at, None).refuse(error.message().split_whitespace().collect::<Vec<_>>().join(" "))
    })?;
    let (mut of_command, mut of_all) = (Vec::new(), Vec::new());
    for (key, value) in in_order(table.get_ref()) {
        match (layers.definition.find_subcommand(key.get_ref().as_ref()), value.get_ref()) {
            (Some(section), DeValue::Table(entries)) => {
                for (key, value) in in_order(entries) {
                    let Some(flag) = flag_named(section, key.get_ref()) else {
                        return Err(file.unknown(layers, key, &format!("is no flag of {}", section.get_name())));
                    };
                    if section.get_name() == layers.command.get_name() {
                        of_command.push(file.given(layers.command, flag, key, value)?);
                    }
                }
            }
            _ => match flag_named(layers.command, key.get_ref()) {
                Some(flag) => of_all.push(file.given(layers.command, flag, key, value)?),
                // A flag of other commands alone is for them.
                None if layers.unknown(key.get_ref()).is_none() => {}
                None => return Err(file.unknown(layers, key, "is no flag of proxytune")),
            },
        }
    }
    Ok([of_command, of_all])
}

/// The entries as a person reads them, so that the first mistake is told of first.
fn in_order<'t, 'i>(table: &'t DeTable<'i>) -> Vec<(&'t Key<'i>, &'t Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

fn read(path: &Path) -> Result<String> {
    let refused = |message: &dyn std::fmt::Display| Error::argument("config", format!("{path:?}: {message}"));
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| refused(&error))?;
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| refused(&error))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(refused(&format!("longer than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

type Key<'i> = Spanned<std::borrow::Cow<'i, str>>;

struct File<'t> {
    path: &'t Path,
    text: &'t str,
}

impl File<'_> {
    fn place(&self, byte: usize, key: Option<&str>) -> Place {
        let line = 1 + self.text.bytes().take(byte).filter(|&byte| byte == b'\n').count();
        let (name, key) =
            key.map_or_else(Default::default, |key| (format!("{key} in line {line}"), format!("{key}: ")));
        Place { param: "config".into(), at: format!("{:?}: line {line}: {key}", self.path), name }
    }

    fn unknown(&self, layers: &Layers, key: &Key, what: &str) -> Error {
        let nearest = layers.unknown(key.get_ref()).flatten();
        let place = self.place(key.span().start, None);
        place.refuse(format!("{:?} {what}{}", key.get_ref(), did_you_mean(nearest)))
    }

    fn given<'a>(&self, command: &'a Command, flag: &Arg, key: &Key, value: &Spanned<DeValue>) -> Result<Given<'a>> {
        let place = self.place(key.span().start, Some(key.get_ref()));
        let typed = as_typed(flag, value.get_ref()).map_err(|message| place.refuse(message))?;
        let flag = flag_named(command, long(flag)).expect("it was found there");
        Ok(Given { flag, place, typed })
    }
}

/// A value as it would be typed.
fn as_typed(flag: &Arg, value: &DeValue) -> Result<Vec<OsString>, String> {
    let takes = Takes::of(flag);
    let one = |value: &DeValue| scalar(flag, value).map(|text| typed(flag, Some(OsStr::new(&text))));
    match (takes, value) {
        (Takes::Nothing | Takes::ValueOrNothing, DeValue::Boolean(true)) => Ok(vec![typed(flag, None)]),
        (Takes::Nothing | Takes::ValueOrNothing, DeValue::Boolean(false)) => Ok(Vec::new()),
        (Takes::Nothing, other) => Err(format!("must be true or false, not {}", name_of(other))),
        (Takes::Values, DeValue::Array(values)) => values.iter().map(|value| one(value.get_ref())).collect(),
        // `logit_bias = { 5 = -1 }` is `--logit-bias 5=-1`, as in a line of a batch.
        (Takes::Values, DeValue::Table(pairs)) if takes_pairs(flag) => {
            let pair = |(key, value): (&Key, &Spanned<DeValue>)| {
                let text = format!("{}={}", key.get_ref(), scalar(flag, value.get_ref())?);
                Ok(typed(flag, Some(OsStr::new(&text))))
            };
            pairs.iter().map(pair).collect()
        }
        (_, value) => Ok(vec![one(value)?]),
    }
}

fn takes_pairs(flag: &Arg) -> bool {
    flag.get_value_names().is_some_and(|names| names.iter().any(|name| name.contains('=')))
}

fn scalar(flag: &Arg, value: &DeValue) -> Result<String, String> {
    let kind = flag.get_value_parser().type_id();
    let is_text =
        [TypeId::of::<String>(), TypeId::of::<PathBuf>(), TypeId::of::<OsString>()].iter().any(|id| kind == *id);
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) if !is_text => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Ok(number.to_string()),
            Err(_) => Ok(number.as_str().to_string()),
        },
        DeValue::Float(number) if !is_text => Ok(number.as_str().to_string()),
        other => Err(format!(
            "must be {}, not {}",
            if is_text { "a string" } else { "a number or a string" },
            name_of(other)
        )),
    }
}

fn name_of(value: &DeValue) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
