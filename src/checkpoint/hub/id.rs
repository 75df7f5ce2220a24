//! What a person may write for a model: a directory, or an id on the hub; and for a version of it: a revision.

use crate::{Error, Result};
use std::fmt;
use std::path::{Component, Path, PathBuf};

/// Longest id that the hub gives out.
const MAX_ID_CHARS: usize = 96;

/// Where a model that a person named is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A directory on disk.
    Directory(PathBuf),
    /// A repository on the hub.
    Hub(ModelId),
}

impl Place {
    /// A path that exists is a path, and so is what looks like one (`./x`, `/x`, `../x`, `~`); else it must be an id.
    pub fn of(named: &Path) -> Result<Self> {
        let plain = matches!(named.components().next(), Some(Component::Normal(first)) if first != "~");
        if !plain || named.exists() {
            return Ok(Place::Directory(named.into()));
        }
        match named.to_str().map(ModelId::parse) {
            Some(Ok(id)) => Ok(Place::Hub(id)),
            Some(Err(why)) => Err(Error::file(named, format!("no such directory, and no model id of the hub: {why}"))),
            None => Err(Error::file(named, "no such directory")),
        }
    }
}

/// `org/name`, as the hub allows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelId(String);

impl ModelId {
    /// Checks the form; a message says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() != 2 {
            return Err("that is org/name, with one slash".into());
        }
        if let Some(c) = text.chars().find(|c| !c.is_ascii_alphanumeric() && !"/-_.".contains(*c)) {
            return Err(format!("{c:?} is not in [A-Za-z0-9._-]"));
        }
        let bad_end = |part: &&str| part.is_empty() || part.starts_with(['-', '.']) || part.ends_with(['-', '.']);
        if parts.iter().any(bad_end) {
            return Err("org and name begin and end with a letter, a digit or _".into());
        }
        if text.contains("--") || text.contains("..") || text.ends_with(".git") {
            return Err("it has no --, no .. and no .git at its end".into());
        }
        if text.len() > MAX_ID_CHARS {
            return Err(format!("{} characters, the limit is {MAX_ID_CHARS}", text.len()));
        }
        Ok(Self(text.into()))
    }

    /// `org/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A branch, tag or commit. It becomes part of an address and of a path, so it is held to git's rules for names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Revision(String);

impl Revision {
    /// The branch where none is named.
    pub fn main() -> Self {
        Self("main".into())
    }

    /// Checks the form; a message says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad_part =
            |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with('.') || part.contains("..");
        let bad_char = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
        if text.split('/').any(bad_part) || text.contains(bad_char) || text.len() > 255 {
            return Err(format!("{text:?} is not a branch, a tag or a commit"));
        }
        Ok(Self(text.into()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a full commit, which never changes.
    pub(super) fn is_commit(&self) -> bool {
        is_commit(&self.0)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text is the full name of a commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

pub(super) fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
