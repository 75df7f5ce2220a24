//! Model files that are not what they claim to be: each is refused with an error that names the file and the byte, or the
//! field, and nothing panics, hangs, or allocates what a file merely claims.

mod config;
mod families;
mod fuzz;
mod layout;
#[path = "../common/model.rs"]
mod model;
mod safetensors;
mod shards;
mod tokenizer;
mod trio;

use model::ModelDir;
use proxytune::Error;
use proxytune::checkpoint::{Checkpoint, Source};
use std::path::Path;

/// What an error must say. Files are named without their directory; "" is the directory itself.
#[derive(Debug)]
enum Expect {
    /// [`Error::File`] without a byte.
    File(&'static str, &'static str),
    /// [`Error::File`] at a byte.
    At(&'static str, u64, &'static str),
    /// [`Error::Config`]: file, field.
    Field(&'static str, &'static str, &'static str),
    /// [`Error::Tensor`]: file, tensor.
    Tensor(&'static str, &'static str, &'static str),
}

/// How a good directory becomes a bad one.
type Breakage = Box<dyn Fn(&ModelDir)>;

/// One bad model: what is done to a good directory, and what must be said of it.
struct Case {
    label: &'static str,
    breakage: Breakage,
    expect: Expect,
}

fn case(label: &'static str, breakage: impl Fn(&ModelDir) + 'static, expect: Expect) -> Case {
    Case { label, breakage: Box::new(breakage), expect }
}

impl Expect {
    /// What `error`, of the model in `directory`, says amiss.
    fn check(&self, directory: &Path, error: &Error) -> Result<(), String> {
        let path = |file: &str| if file.is_empty() { directory.to_path_buf() } else { directory.join(file) };
        let (fits, part) = match (self, error) {
            (Expect::File(file, part), Error::File { path: found, offset: None, .. }) => (path(file) == *found, part),
            (Expect::At(file, byte, part), Error::File { path: found, offset: Some(offset), .. }) => {
                (path(file) == *found && byte == offset, part)
            }
            (Expect::Field(file, name, part), Error::Config { path: found, field, .. }) => {
                (path(file) == *found && name == field, part)
            }
            (Expect::Tensor(file, name, part), Error::Tensor { path: found, tensor, .. }) => {
                (path(file) == *found && name == tensor, part)
            }
            _ => (false, &""),
        };
        let text = error.to_string();
        let named = text.contains(directory.to_str().expect("UTF-8"));
        if fits && named && text.contains(part) && error.exit_code() == 3 && !text.contains("panicked") {
            return Ok(());
        }
        Err(format!("{error:?} is not {self:?}"))
    }
}

fn open(model: &ModelDir) -> Result<Checkpoint, Error> {
    Checkpoint::open(Source::directory(model.path()))
}

/// Breaks a fresh Llama for each case and opens it with `open`; tells of all cases that go wrong.
fn refuse<T>(cases: Vec<Case>, open: impl Fn(&ModelDir) -> Result<T, Error>) {
    let wrong = cases.into_iter().filter_map(|Case { label, breakage, expect }| {
        let model = ModelDir::llama();
        breakage(&model);
        let checked = match open(&model) {
            Ok(_) => Err("opens".into()),
            Err(error) => expect.check(model.path(), &error),
        };
        checked.err().map(|what| format!("{label}: {what}"))
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_models_that_the_cases_break_are_right() {
    for model in [ModelDir::llama(), ModelDir::qwen2()] {
        let checkpoint = open(&model).expect("a right model");
        let embedding = checkpoint.read_f32("model.embed_tokens.weight").expect("it is there");
        assert_eq!(embedding.len(), model::N_VOCAB * model::D_MODEL);
        assert!(checkpoint.config.warnings.is_empty());
    }
}
