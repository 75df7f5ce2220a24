//! One request as a user writes it: by flags, or as a line of JSON with the same names. Both become the same
//! [`Request`] here, and nowhere else.

use super::sampling::{Room, SamplingFields};
use crate::engine::limits::check_biased_once;
use crate::engine::request::{Draft, Request};
use crate::engine::trio::Trio;
use crate::text::prompt::{PromptRequest, Roles};
use crate::text::tokenizer::MAX_TEXT_BYTES;
use crate::{Error, Result};
use clap::Args;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What is asked for; absent fields take the library's defaults.
#[derive(Args, Serialize, Deserialize, Clone, Default, Debug)]
#[serde(default)]
pub(super) struct RequestFields {
    /// Names the request in its result; lines only.
    #[arg(skip)]
    pub id: Option<Value>,

    /// The prompt; `-` reads standard input
    #[arg(short, long, value_name = "TEXT", help_heading = "Prompt", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Read the prompt from a file, `-` for standard input; one newline at its end is dropped
    #[arg(short, long, value_name = "FILE", help_heading = "Prompt", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// Put the prompt into the chat template of these roles: all, none, or a list of base,expert,anti-expert; bare:
    /// expert, the published setting
    #[arg(long, value_name = "ROLES", help_heading = "Prompt", num_args = 0..=1, default_missing_value = "expert")]
    #[serde(deserialize_with = "chat")]
    pub chat: Option<String>,
    /// System message of the roles with a chat template
    #[arg(long, value_name = "TEXT", help_heading = "Prompt", allow_hyphen_values = true)]
    pub system_prompt: Option<String>,
    /// The expert's own prompt, in place of the common one
    #[arg(long, value_name = "TEXT", help_heading = "Prompt", allow_hyphen_values = true)]
    pub expert_prompt: Option<String>,
    /// The anti-expert's own prompt, in place of the common one
    #[arg(long, value_name = "TEXT", help_heading = "Prompt", allow_hyphen_values = true)]
    pub anti_expert_prompt: Option<String>,
    /// Beginning of the response, not printed; it must give the same tokens in the three roles
    #[arg(long, value_name = "TEXT", help_heading = "Prompt", allow_hyphen_values = true)]
    pub response_prefix: Option<String>,

    #[command(flatten)]
    #[serde(flatten)]
    pub sampling: SamplingFields,

    /// Texts per prompt, 1 to 128; printed one after the other with a line `---` between, or as K JSON objects
    #[arg(long, value_name = "K", help_heading = "Sampling", allow_hyphen_values = true)]
    pub n: Option<u32>,

    /// Add a record of every step with its K best tokens, 0 to 20, to the JSON
    #[arg(long, value_name = "K", help_heading = "Output", allow_hyphen_values = true)]
    pub record: Option<usize>,
}

impl RequestFields {
    /// The request, checked in full: what passes here can run.
    pub(super) fn request(&self, trio: &Trio, max_model_len: Option<u32>) -> Result<Request> {
        let prompts = self.prompts()?.encode(&trio.models().role_texts())?.ids;
        let room = Room::after(&prompts, self.sampling.mode(), trio, max_model_len)?;
        let draft = self.sampling.draft(trio, prompts, self.sampling.fitting_tokens(&room)?)?;
        Request::new(Draft { n: self.n.unwrap_or(1), record: self.record, ..draft }, &trio.limits())
    }

    /// Whether any role's prompt goes through a chat template; what cannot be read is refused elsewhere.
    pub(super) fn uses_chat(&self) -> bool {
        self.chat.as_deref().is_some_and(|chat| chat.parse() != Ok(Roles::NONE))
    }

    /// What only the command line can say: `-` becomes the text of standard input, and a repeatable flag may name an
    /// id twice.
    pub(super) fn settle(&mut self) -> Result<()> {
        // Before flags become the defaults of lines, whose maps would keep the last.
        check_biased_once(self.sampling.logit_bias.as_deref().unwrap_or_default())?;
        let stdin = |text: &Path| text.as_os_str() == "-";
        if self.prompt.as_deref().is_some_and(|text| stdin(Path::new(text))) {
            self.prompt = Some(read_text(&mut std::io::stdin().lock(), "prompt", Path::new("-"))?);
        }
        if self.prompt.is_none() && self.file.as_deref().is_some_and(stdin) {
            self.file = None;
            self.prompt = Some(read_text(&mut std::io::stdin().lock(), "file", Path::new("-"))?);
        }
        Ok(())
    }

    fn prompts(&self) -> Result<PromptRequest> {
        let text = match (&self.prompt, &self.file) {
            (Some(_), Some(_)) => return Err(Error::argument("file", "both a prompt and a file are given")),
            (Some(text), None) => text.clone(),
            (None, Some(path)) => {
                let refused = |error| Error::argument("file", format!("{path:?}: {error}"));
                let mut file = std::fs::File::open(path).map_err(refused)?;
                read_text(&mut file, "file", path)?
            }
            (None, None) => {
                return Err(Error::argument("prompt", "missing: give the text of a prompt, or a file that holds it"));
            }
        };
        Ok(PromptRequest {
            text,
            turns: Vec::new(),
            chat: self.chat.as_deref().unwrap_or("none").parse()?,
            system: self.system_prompt.clone(),
            expert_text: self.expert_prompt.clone(),
            anti_text: self.anti_expert_prompt.clone(),
            response_prefix: self.response_prefix.clone(),
        })
    }
}

/// All of a text without one newline at its end, which editors and `echo` put there.
fn read_text(from: &mut impl Read, param: &str, path: &Path) -> Result<String> {
    let refused = |error: &dyn std::fmt::Display| Error::argument(param, format!("{path:?}: {error}"));
    let mut bytes = Vec::new();
    // Enough for the tokenizer to say that it is too long.
    from.take(MAX_TEXT_BYTES as u64 + 3).read_to_end(&mut bytes).map_err(|error| refused(&error))?;
    let mut text = String::from_utf8(bytes).map_err(|error| refused(&error))?;
    if text.ends_with('\n') {
        text.truncate(text.len() - if text.ends_with("\r\n") { 2 } else { 1 });
    }
    Ok(text)
}

/// `chat` in a line: roles as the flag names them, a list of them, or true for a bare flag.
fn chat<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "must be roles, a list of roles, true or false")]
    enum Chat {
        Bare(bool),
        Roles(String),
        List(Vec<String>),
    }
    Ok(Option::deserialize(from)?.map(|chat| match chat {
        Chat::Bare(true) => "expert".into(),
        Chat::Bare(false) => "none".into(),
        Chat::Roles(roles) => roles,
        Chat::List(roles) if roles.is_empty() => "none".into(),
        Chat::List(roles) => roles.join(","),
    }))
}
