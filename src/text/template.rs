//! Chat templates: messages to the text that a tuned model was trained on, as transformers renders them.
//!
//! A template is a program that comes with the model. It sees the messages and the names of special tokens, has no access
//! to files or the environment, and runs on a limited number of steps and bytes of output.

use super::filters;
use super::guard;
use super::slices;
use super::tokenizer::TokenizerConfig;
use crate::checkpoint::{Fields, Source};
use crate::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use std::collections::BTreeMap;
use std::error::Error as _;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const FILE: &str = "chat_template.jinja";
const CONFIG_FILE: &str = "tokenizer_config.json";
/// The name of the template inside its environment.
const NAME: &str = "chat_template";
/// Templates of the families that are read stay under 10 KiB. It bounds the depth of a template's expressions, whose
/// compilation takes stack ([`STACK_BYTES`]).
const MAX_TEMPLATE_BYTES: usize = 32 << 10;
/// Arithmetic in one template, where published ones have some dozens. The compiler takes the square of their number in
/// time where all stand in one expression: 20 seconds for a template of nothing else, under 100 ms for these.
const MAX_OPERATORS: usize = 2_000;
/// Steps of the template machine: a long chat takes some thousands, an endless loop reaches this within 100 ms. Large
/// values cost more steps, so it bounds their memory and depth too.
const FUEL: u64 = 250_000;
/// Stack for a template of one deep expression, or one that nests values as deep as [`FUEL`] allows: the template machine
/// recurses over both. Only what is used of it takes memory.
const STACK_BYTES: usize = 256 << 20;
/// For what the steps do not count: a list that is added to itself again and again doubles at each step. The longest
/// honest template takes a tenth of a second.
const MAX_TIME: Duration = Duration::from_secs(5);
/// Longest rendered text; the tokenizer takes less.
const MAX_OUTPUT_BYTES: usize = 4 << 20;
/// Longest text of `raise_exception` that is passed on.
const MAX_RAISED_BYTES: usize = 500;
/// Stands for the content of a message while contents are located.
const MARK: char = '\u{F8F2}';

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`; the template decides which it knows.
    pub role: String,
    /// The text.
    pub content: String,
}

/// A compiled chat template.
pub struct ChatTemplate {
    path: PathBuf,
    environment: Arc<Environment<'static>>,
    specials: BTreeMap<&'static str, String>,
    left_behind: LeftBehind,
}

/// Threads that took longer than [`MAX_TIME`]. Nothing can stop them; while one runs on, no other is started, so that a
/// batch of requests does not fill the machine with them. Each receiver is closed when its thread ends.
#[derive(Default)]
struct LeftBehind(Mutex<Vec<Receiver<()>>>);

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

impl ChatTemplate {
    /// The template of a model: chat_template.jinja, else `chat_template` of tokenizer_config.json, else none.
    pub fn open(source: &Source, tokens: &TokenizerConfig) -> Result<Option<Self>> {
        let (path, text) = if let Some(bytes) = source.read(FILE, MAX_TEMPLATE_BYTES as u64)? {
            (source.path(FILE), utf8(&source.path(FILE), bytes)?)
        } else if let Some(text) = from_config(source)? {
            (source.path(CONFIG_FILE), text)
        } else {
            return Ok(None);
        };
        Self::compile(path, &text, tokens).map(Some)
    }

    /// A template in a file that the user names.
    pub fn open_file(path: &Path, tokens: &TokenizerConfig) -> Result<Self> {
        let (Some(directory), Some(file)) = (path.parent(), path.file_name().and_then(|f| f.to_str())) else {
            return Err(Error::file(path, "not a file name"));
        };
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let bytes = Source::directory(directory).read(file, MAX_TEMPLATE_BYTES as u64)?;
        let bytes = bytes.ok_or_else(|| Error::file(path, "there is no such file"))?;
        Self::compile(path.to_path_buf(), &utf8(path, bytes)?, tokens)
    }

    /// Compiles `text`; `path` is for messages.
    pub fn compile(path: PathBuf, text: &str, tokens: &TokenizerConfig) -> Result<Self> {
        if text.len() > MAX_TEMPLATE_BYTES {
            let message = format!("chat template: {} bytes, the limit is {MAX_TEMPLATE_BYTES}", text.len());
            return Err(Error::file(path, message));
        }
        let n_operators = n_operators(text);
        if n_operators > MAX_OPERATORS {
            return Err(Error::file(
                path,
                format!("chat template: {n_operators} operators, the limit is {MAX_OPERATORS}"),
            ));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|e| template_error(&path, &e))?;
        environment.set_syntax(syntax.clone());
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(|state, value, method, arguments| match method {
            slices::METHOD => slices::slice(state, value, arguments),
            "format" => filters::check_keys(value, "[", ']')
                .and_then(|()| unknown_method_callback(state, value, method, arguments)),
            _ => unknown_method_callback(state, value, method, arguments),
        });
        environment.add_function("raise_exception", filters::raise_exception);
        environment.add_function("strftime_now", filters::strftime_now);
        environment.add_filter("format", filters::format);
        environment.add_filter("tojson", filters::tojson);
        environment.set_formatter(guard::write);
        environment.add_filter(guard::MADE, guard::made);
        environment.add_filter(guard::WEIGHED, guard::weighed);
        // Not of Jinja, and views like slices: a list chained to itself is counted by going through both, 2^n for n steps.
        environment.remove_filter("chain");
        environment.remove_filter("zip");
        let text = slices::as_calls(&filters::without_generation_tags(text));
        let left_behind = LeftBehind::default();
        let compile = move || {
            environment.add_template_owned(NAME, guard::guarded(NAME, text, syntax)?)?;
            Ok(environment)
        };
        let environment = left_behind.in_time(&path, compile)?;
        let all = [
            ("bos_token", &tokens.bos),
            ("eos_token", &tokens.eos),
            ("unk_token", &tokens.unk),
            ("pad_token", &tokens.pad),
        ];
        let specials = all.into_iter().filter_map(|(name, token)| Some((name, token.clone()?))).collect();
        Ok(ChatTemplate { path, environment: Arc::new(environment), specials, left_behind })
    }

    /// Where the template came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text of `messages`, followed by the opening of the answer if `add_generation_prompt`.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let mut context: BTreeMap<&str, Value> = BTreeMap::new();
        let pairs = |m: &Message| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]);
        context.insert("messages", Value::from(messages.iter().map(pairs).collect::<Vec<_>>()));
        context.insert("add_generation_prompt", Value::from(add_generation_prompt));
        // transformers defines both, as none, where there are none.
        context.insert("tools", Value::from(()));
        context.insert("documents", Value::from(()));
        context.extend(self.specials.iter().map(|(&name, token)| (name, Value::from(token.as_str()))));
        let (environment, context) = (Arc::clone(&self.environment), Value::from(context));
        let output = self.left_behind.in_time(&self.path, move || {
            let mut output = Capped::default();
            let template = environment.get_template(NAME).expect("compiled when made");
            template.render_captured_to(context, &mut output).map(|_| ())?;
            Ok(output.0)
        })?;
        utf8(&self.path, output)
    }

    /// Where in `text`, the rendering of `messages`, the contents of messages stand.
    ///
    /// The template is rendered a second time with a mark in place of each content, and the two texts are compared; contents
    /// may have been trimmed. A template that treats contents in any other way gives an error.
    pub fn locate(&self, messages: &[Message], add_generation_prompt: bool, text: &str) -> Result<Vec<Range<usize>>> {
        let marked: Vec<Message> =
            (0..messages.len()).map(|i| Message::new(messages[i].role.clone(), format!("{MARK}{i}{MARK}"))).collect();
        let with_marks = self.render(&marked, add_generation_prompt)?;
        let refuse = || {
            let message =
                "spells a special token, and the chat template changes contents, so they cannot be kept apart";
            Error::argument("prompt", message)
        };
        // Marks come in pairs around a number: literal, number, literal, number, ..., literal.
        let parts: Vec<&str> = with_marks.split(MARK).collect();
        if parts.len().is_multiple_of(2) || !text.starts_with(parts[0]) {
            return Err(refuse());
        }
        let (mut ranges, mut at) = (Vec::new(), parts[0].len());
        for (i, pair) in parts[1..].chunks_exact(2).enumerate() {
            let content = pair[0].parse().ok().and_then(|index: usize| messages.get(index)).ok_or_else(refuse)?;
            let content = content.content.as_str();
            let is_last = 2 * (i + 1) + 1 == parts.len();
            let follows = |form: &str| {
                let rest = text[at..].strip_prefix(form)?;
                (if is_last { rest == pair[1] } else { rest.starts_with(pair[1]) }).then_some(form.len())
            };
            let forms = [content, content.trim(), content.trim_start(), content.trim_end()];
            let n_bytes = forms.into_iter().find_map(follows).ok_or_else(refuse)?;
            ranges.push(at..at + n_bytes);
            at += n_bytes + pair[1].len();
        }
        if at == text.len() { Ok(ranges) } else { Err(refuse()) }
    }
}

/// `chat_template` is one template, or a list of named ones of which `default` is the chat's.
fn from_config(source: &Source) -> Result<Option<String>> {
    let Some(fields) = Fields::read(source, CONFIG_FILE)? else { return Ok(None) };
    match fields.get("chat_template") {
        None => Ok(None),
        Some(list) if list.is_array() => {
            let named = |item: &&serde_json::Value| item.get("name").and_then(|n| n.as_str()) == Some("default");
            let default = list.as_array().into_iter().flatten().find(named);
            let text = default.and_then(|item| item.get("template")).and_then(|t| t.as_str());
            text.map(|text| Some(text.to_string()))
                .ok_or_else(|| fields.error("chat_template", "a list without a template named \"default\""))
        }
        Some(_) => Ok(fields.text("chat_template")?.map(str::to_string)),
    }
}

fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| Error::file_at(path, e.utf8_error().valid_up_to() as u64, "not UTF-8"))
}

/// Characters of arithmetic, wherever they stand: to look for them in code alone would be another parser. The dashes and
/// pluses of tags (`{%-`, `-%}`) do not count.
fn n_operators(text: &str) -> usize {
    let bytes = text.as_bytes();
    let at = |i: usize| bytes.get(i).copied().unwrap_or_default();
    let is_tag = |i: usize| i > 0 && matches!(at(i - 1), b'{' | b'%' | b'#') || matches!(at(i + 1), b'}' | b'%' | b'#');
    (0..bytes.len()).filter(|&i| matches!(at(i), b'+' | b'-' | b'*' | b'/' | b'%' | b'~') && !is_tag(i)).count()
}

/// What the template says by `raise_exception` is about the request; everything else is a fault of the template's file.
fn template_error(path: &Path, error: &minijinja::Error) -> Error {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    if let Some(filters::Raised(text)) = error.source().and_then(|source| source.downcast_ref()) {
        let end = (0..=text.len().min(MAX_RAISED_BYTES)).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        let path = path.display().to_string();
        return Error::argument("chat", format!("the template {path:?} refuses: {line}{}", &text[..end]));
    }
    let detail = match error.kind() {
        ErrorKind::OutOfFuel => format!("more than {FUEL} steps"),
        ErrorKind::WriteFailure => format!("more than {MAX_OUTPUT_BYTES} bytes of output"),
        kind => format!("{kind}: {}", error.detail().unwrap_or("no details")),
    };
    Error::file(path, format!("chat template: {line}{detail}"))
}

impl LeftBehind {
    /// Runs `work` on a thread of its own with [`STACK_BYTES`] of stack, for [`MAX_TIME`] at most.
    fn in_time<T: Send + 'static>(
        &self,
        path: &Path,
        work: impl FnOnce() -> Result<T, minijinja::Error> + Send + 'static,
    ) -> Result<T> {
        let too_long = |more: &str| {
            Error::file(path, format!("chat template: takes more than {} seconds{more}", MAX_TIME.as_secs()))
        };
        if self.runs_on() {
            return Err(too_long(", and the last text that it took so long for is still being made"));
        }
        let ((sender, receiver), (running, ended)) = (mpsc::channel(), mpsc::channel());
        let thread = thread::Builder::new().name("template".into()).stack_size(STACK_BYTES);
        let started = thread.spawn(move || {
            // Dropped last, even where the work panics.
            let _running: mpsc::Sender<()> = running;
            // Where the time is over, nobody receives.
            drop(sender.send(work()));
        });
        started.map_err(|e| Error::Io { message: format!("cannot start the template's thread: {e}") })?;
        match receiver.recv_timeout(MAX_TIME) {
            Ok(done) => done.map_err(|e| template_error(path, &e)),
            Err(RecvTimeoutError::Timeout) => {
                self.0.lock().expect("no holder panics").push(ended);
                Err(too_long(""))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(Error::Io { message: "the template's thread has failed".into() })
            }
        }
    }

    /// Whether a thread is still at it.
    fn runs_on(&self) -> bool {
        let mut threads = self.0.lock().expect("no holder panics");
        threads.retain(|ended| ended.try_recv() == Err(TryRecvError::Empty));
        !threads.is_empty()
    }
}

/// Output that refuses to grow past the limit.
#[derive(Default)]
pub(super) struct Capped(pub(super) Vec<u8>);

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other("output limit"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_left_behind_once() {
        let path = Path::new("dir/chat_template.jinja");
        let left_behind = LeftBehind::default();
        let (release, released) = mpsc::channel::<()>();
        let error = left_behind.in_time(path, move || Ok(released.recv().is_ok()));
        let error = error.expect_err("it waits on");
        assert!(matches!(&error, Error::File { path: found, .. } if found == path), "{error:?}");
        assert!(error.to_string().ends_with("chat template: takes more than 5 seconds"), "{error}");
        for _ in 0..3 {
            let error = left_behind.in_time(path, || Ok(())).expect_err("the first still waits");
            assert!(error.to_string().contains("is still being made"), "{error}");
        }
        drop(release);
        // Closed when the thread has ended; then the template may be tried again.
        assert!(left_behind.0.lock().expect("no holder panics")[0].recv().is_err());
        left_behind.in_time(path, || Ok(())).expect("nothing runs on");
    }
}
