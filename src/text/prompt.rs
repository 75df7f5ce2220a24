//! A request's text to three lists of ids, one per role.
//!
//! Only response tokens are shared. Each role has its own tokenizer, template and BOS rule, so the lists differ in content and
//! length; what must agree is where the response begins.

use super::template::{ChatTemplate, Message};
use super::tokenizer::Tokenizer;
use super::vocabulary::ROLES;
use crate::{Error, Result};
use serde::Serialize;
use std::str::FromStr;

/// A set of roles, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles(pub [bool; 3]);

impl Roles {
    /// No role: plain text for all.
    pub const NONE: Roles = Roles([false; 3]);
    /// The expert alone: what a bare `--chat` means.
    pub const EXPERT: Roles = Roles([false, true, false]);
    /// All three.
    pub const ALL: Roles = Roles([true; 3]);
}

impl FromStr for Roles {
    type Err = Error;

    /// `all`, `none`, or roles with commas between.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "all" => return Ok(Roles::ALL),
            "none" => return Ok(Roles::NONE),
            _ => {}
        }
        let mut roles = Roles::NONE;
        for name in text.split(',').map(str::trim) {
            let index = ROLES.iter().position(|role| *role == name || role.replace('_', "-") == name);
            let Some(index) = index else {
                let message = format!("{name:?}, must be all, none, or a list of base, expert, anti_expert");
                return Err(Error::argument("chat", message));
            };
            roles.0[index] = true;
        }
        Ok(roles)
    }
}

/// A message of a conversation and what was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// What was asked.
    pub message: String,
    /// What was answered, as it was produced.
    pub reply: String,
}

/// What a request says of its prompts.
#[derive(Debug, Clone, Default)]
pub struct PromptRequest {
    /// The prompt, for every role without its own.
    pub text: String,
    /// What was said before it, oldest first. A chat template gets messages and replies, these without white space
    /// around them; a role without one gets the text that it had read and written until then, and begins each further
    /// message on a new line.
    pub turns: Vec<Turn>,
    /// Roles whose prompt is put into their chat template.
    pub chat: Roles,
    /// A system message for the roles with a template.
    pub system: Option<String>,
    /// Replaces `text` for the expert.
    pub expert_text: Option<String>,
    /// Replaces `text` for the anti-expert.
    pub anti_text: Option<String>,
    /// The beginning of the response, the same ids for all roles.
    pub response_prefix: Option<String>,
}

/// What one role needs to make its prompt.
#[derive(Clone, Copy)]
pub struct RoleText<'a> {
    /// The role's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The role's chat template, if it has one, or what is wrong with it.
    pub template: Result<Option<&'a ChatTemplate>, &'a Error>,
    /// Width of the role's embedding: a prompt id at or past it has no row.
    pub width: usize,
}

/// The three prompts of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    /// Ids per role, in order of roles; each ends with the response prefix.
    pub ids: [Vec<u32>; 3],
    /// How many ids at the end of each are the response prefix.
    pub n_prefix: usize,
}

/// The first token of a response, per role, if the response began with `text`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FirstToken {
    /// The beginning tried.
    pub text: &'static str,
    /// The id, or none where the prompt's last token would change.
    pub ids: [Option<u32>; 3],
    /// Whether it is one id in all three.
    pub agrees: bool,
}

impl PromptRequest {
    /// The three lists of ids.
    pub fn encode(&self, roles: &[RoleText; 3]) -> Result<Prompts> {
        if self.system.is_some() && self.chat == Roles::NONE {
            return Err(Error::argument("system_prompt", "has no effect without chat"));
        }
        let prompts = self.role_prompts(roles)?;
        let mut ids: [Vec<u32>; 3] = Default::default();
        for (i, role) in roles.iter().enumerate() {
            ids[i] = prompts[i].encode("")?;
            check_ids(&ids[i], role, ROLES[i])?;
        }
        let Some(prefix) = self.response_prefix.as_deref().filter(|prefix| !prefix.is_empty()) else {
            return Ok(Prompts { ids, n_prefix: 0 });
        };
        let mut prefixes: [Vec<u32>; 3] = Default::default();
        for i in 0..3 {
            prefixes[i] = continuation(&prompts[i], &ids[i], prefix)?.ok_or_else(|| {
                Error::vocabulary(format!(
                    "the response prefix {prefix:?} changes the last tokens of the prompt of {}: {:?}",
                    ROLES[i],
                    tail(&prompts[i].text)
                ))
            })?;
            check_ids(&prefixes[i], &roles[i], ROLES[i])?;
        }
        if let Some(i) = (1..3).find(|&i| prefixes[i] != prefixes[0]) {
            return Err(Error::vocabulary(format!(
                "the response prefix {prefix:?} is {:?} after the prompt of base, {:?} after that of {}",
                prefixes[0], prefixes[i], ROLES[i]
            )));
        }
        ids.iter_mut().for_each(|ids| ids.extend_from_slice(&prefixes[0]));
        Ok(Prompts { ids, n_prefix: prefixes[0].len() })
    }

    /// Whether a response can begin with the same id in the three roles, for a word with and without a space before it.
    ///
    /// A template that ends in a space where the others do not fails both: the word's usual token holds the space already.
    pub fn first_tokens(&self, roles: &[RoleText; 3]) -> Result<Vec<FirstToken>> {
        let prompts = self.role_prompts(roles)?;
        let mut found = Vec::new();
        for text in [" The", "The"] {
            let mut ids = [None; 3];
            for i in 0..3 {
                // Two spaces in a row begin no response.
                if !(prompts[i].text.ends_with(' ') && text.starts_with(' ')) {
                    let prompt = prompts[i].encode("")?;
                    ids[i] = continuation(&prompts[i], &prompt, text)?.and_then(|ids| ids.first().copied());
                }
            }
            found.push(FirstToken { text, ids, agrees: ids[0].is_some() && ids[0] == ids[1] && ids[0] == ids[2] });
        }
        Ok(found)
    }

    fn role_prompts<'a>(&self, roles: &[RoleText<'a>; 3]) -> Result<[RolePrompt<'a>; 3]> {
        let texts = [None, self.expert_text.as_deref(), self.anti_text.as_deref()];
        let one = |i: usize| self.role_prompt(&roles[i], ROLES[i], self.chat.0[i], texts[i].unwrap_or(&self.text));
        Ok([one(0)?, one(1)?, one(2)?])
    }

    fn role_prompt<'a>(&self, role: &RoleText<'a>, name: &str, chat: bool, text: &str) -> Result<RolePrompt<'a>> {
        let tokenizer = role.tokenizer;
        if !chat {
            let earlier = self.turns.iter().map(|turn| format!("{}{}\n", turn.message, turn.reply));
            let text = earlier.chain([text.to_string()]).collect();
            return Ok(RolePrompt { tokenizer, text, form: Form::Raw });
        }
        let Some(template) = role.template.map_err(Error::clone)? else {
            return Err(Error::argument("chat", format!("{name} has no chat template; name one with chat_template")));
        };
        let system = self.system.iter().map(|system| Message::new("system", system));
        let turn = |turn: &Turn| [Message::new("user", &turn.message), Message::new("assistant", turn.reply.trim())];
        let earlier = self.turns.iter().flat_map(turn);
        let messages: Vec<Message> = system.chain(earlier).chain([Message::new("user", text)]).collect();
        let rendered = template.render(&messages, true)?;
        // Only then, because a template that changes contents in its own way cannot be followed.
        let form = if messages.iter().any(|message| tokenizer.mentions_special(&message.content)) {
            Form::Guarded(template.locate(&messages, true, &rendered)?)
        } else {
            Form::Templated
        };
        Ok(RolePrompt { tokenizer, text: rendered, form })
    }
}

/// The text of one role's prompt, and how it is encoded.
struct RolePrompt<'a> {
    tokenizer: &'a Tokenizer,
    text: String,
    form: Form,
}

enum Form {
    Raw,
    Templated,
    /// Where contents stand whose special tokens are text.
    Guarded(Vec<std::ops::Range<usize>>),
}

impl RolePrompt<'_> {
    fn encode(&self, suffix: &str) -> Result<Vec<u32>> {
        let text = format!("{}{suffix}", self.text);
        match &self.form {
            Form::Raw => self.tokenizer.encode_raw(&text),
            Form::Templated => self.tokenizer.encode_templated(&text),
            Form::Guarded(contents) => self.tokenizer.encode_guarded(&text, contents),
        }
    }
}

/// The ids that `suffix` adds to a prompt, or none where it changes the prompt's own.
fn continuation(prompt: &RolePrompt, ids: &[u32], suffix: &str) -> Result<Option<Vec<u32>>> {
    let mut both = prompt.encode(suffix)?;
    Ok(both.starts_with(ids).then(|| both.split_off(ids.len())))
}

fn check_ids(ids: &[u32], role: &RoleText, name: &str) -> Result<()> {
    if ids.is_empty() {
        return Err(Error::argument("prompt", format!("gives no token for {name}")));
    }
    match ids.iter().find(|&&id| id as usize >= role.width) {
        None => Ok(()),
        Some(id) => {
            let message = format!("{name}: the prompt holds token id {id}, the model has {} rows", role.width);
            Err(Error::vocabulary(message))
        }
    }
}

/// The end of a text, as a message shows it.
fn tail(text: &str) -> &str {
    let start = text.char_indices().rev().nth(20).map_or(0, |(at, _)| at);
    &text[start..]
}
