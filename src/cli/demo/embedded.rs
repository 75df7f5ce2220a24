//! The files of `demo/` that are compiled in: three models, the questions, the answers of the yardstick.

use crate::checkpoint::Source;
use crate::engine::trio::TrioSources;
use crate::{Error, Result};
use serde::Deserialize;
use std::fs;
use std::path::Path;

type Files = &'static [(&'static str, &'static [u8])];

macro_rules! files {
    ($dir:literal) => {
        &[
            ("config.json", include_bytes!(concat!("../../../demo/", $dir, "/config.json"))),
            ("generation_config.json", include_bytes!(concat!("../../../demo/", $dir, "/generation_config.json"))),
            ("model.safetensors", include_bytes!(concat!("../../../demo/", $dir, "/model.safetensors"))),
            ("tokenizer.json", include_bytes!(concat!("../../../demo/", $dir, "/tokenizer.json"))),
            ("tokenizer_config.json", include_bytes!(concat!("../../../demo/", $dir, "/tokenizer_config.json"))),
        ]
    };
}

static BASE: Files = files!("base");
static EXPERT: Files = files!("expert");
static ANTI_EXPERT: Files = files!("anti-expert");

/// A held-out question.
#[derive(Deserialize)]
pub(super) struct Question {
    pub question: String,
    /// Must be in a right answer.
    pub fact: String,
    /// Must begin an answer in form.
    pub person: String,
}

/// An answer of the large model tuned directly.
#[derive(Deserialize)]
pub(super) struct TargetAnswer {
    pub answer: String,
    /// Whether it ended by itself.
    pub ended: bool,
}

/// The demo's three models.
pub fn sources() -> TrioSources {
    TrioSources {
        base: source("demo/base", BASE),
        expert: Some(source("demo/expert", EXPERT)),
        anti_expert: Some(source("demo/anti-expert", ANTI_EXPERT)),
    }
}

fn source(name: &'static str, files: Files) -> Source {
    Source::memory(name, files.iter().map(|&(file, bytes)| (file, bytes.into())))
}

/// The held-out questions, those to show first.
pub(super) fn questions() -> Vec<Question> {
    serde_json::from_str(include_str!("../../../demo/questions.json")).expect("the file in the repository is right")
}

/// The yardstick's answers, in the order of the questions.
pub(super) fn target() -> Vec<TargetAnswer> {
    serde_json::from_str(include_str!("../../../demo/target.json")).expect("the file in the repository is right")
}

/// Writes the three models as directories. Files that are there already and differ are refused, before any is written.
pub(super) fn save(directory: &Path) -> Result<()> {
    let models = [("base", BASE), ("expert", EXPERT), ("anti-expert", ANTI_EXPERT)];
    let files = || models.iter().flat_map(|(role, files)| files.iter().map(move |file| (role, file)));
    for (role, (name, bytes)) in files() {
        let path = directory.join(role).join(name);
        match fs::read(&path) {
            Ok(there) if there != *bytes => {
                return Err(Error::argument("save", format!("{path:?} is there already, and differs")));
            }
            _ => {}
        }
    }
    for (role, (name, bytes)) in files() {
        let directory = directory.join(role);
        let path = directory.join(name);
        let written = fs::create_dir_all(&directory).and_then(|()| fs::write(&path, bytes));
        written.map_err(|error| Error::Io { message: format!("{path:?}: {error}") })?;
    }
    Ok(())
}
