//! The environment variables of huggingface_hub, which decide the same things here.

use crate::{Error, Result};
use std::env;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use ureq::http::HeaderValue;

const ENDPOINT: &str = "https://huggingface.co";
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where the hub and its cache are, and how to ask.
pub(super) struct Settings {
    /// `HF_ENDPOINT`, without a slash at its end.
    pub(super) endpoint: String,
    /// `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`.
    pub(super) cache: PathBuf,
    /// The header that `HF_TOKEN`, or the file that `hf auth login` wrote, makes. Never printed.
    pub(super) authorization: Option<HeaderValue>,
    /// `HF_HUB_OFFLINE`: ask nobody.
    pub(super) offline: bool,
    /// `HF_HUB_DOWNLOAD_TIMEOUT`: seconds without a byte after which a connection is given up.
    pub(super) timeout: Duration,
}

impl Settings {
    pub(super) fn from_env() -> Result<Self> {
        let home = home()?;
        let hub = || home.join("hub");
        Ok(Self {
            endpoint: endpoint()?,
            cache: path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(hub),
            authorization: token(path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token")))?,
            offline: is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE"),
            timeout: timeout()?,
        })
    }
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn is_true(name: &str) -> bool {
    variable(name).is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
}

/// A path, with the home directory for a `~` before it.
fn path(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os(name).filter(|value| !value.is_empty())?);
    let below_home = path.strip_prefix("~").ok().and_then(|rest| Some(env::home_dir()?.join(rest)));
    Some(below_home.unwrap_or(path))
}

fn home() -> Result<PathBuf> {
    let cache = || path("XDG_CACHE_HOME").or_else(|| Some(env::home_dir()?.join(".cache")));
    let home = path("HF_HOME").or_else(|| Some(cache()?.join("huggingface")));
    home.ok_or_else(|| Error::argument("HF_HOME", "not set, and there is no home directory to keep models in"))
}

fn endpoint() -> Result<String> {
    let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
    let endpoint = endpoint.trim_end_matches('/');
    // It is printed in messages, and in no other form than here.
    if endpoint.contains('@') {
        return Err(Error::argument("HF_ENDPOINT", "holds an @: a user or password has no place in it, see HF_TOKEN"));
    }
    if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
        return Err(Error::argument("HF_ENDPOINT", format!("{endpoint:?} does not begin with https:// or http://")));
    }
    Ok(endpoint.into())
}

fn token(file: PathBuf) -> Result<Option<HeaderValue>> {
    if is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return Ok(None);
    }
    let set = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
    let Some(token) = set.or_else(|| fs::read_to_string(file).ok()) else { return Ok(None) };
    let token = token.trim();
    if token.is_empty() {
        return Ok(None);
    }
    let header = HeaderValue::from_str(&format!("Bearer {token}"));
    let mut header = header.map_err(|_| Error::argument("HF_TOKEN", "holds characters that no token has"))?;
    header.set_sensitive(true);
    Ok(Some(header))
}

fn timeout() -> Result<Duration> {
    const NAME: &str = "HF_HUB_DOWNLOAD_TIMEOUT";
    let Some(text) = variable(NAME) else { return Ok(TIMEOUT) };
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err(Error::argument(NAME, format!("{text:?} is not a number of seconds from 1 to 86400"))),
    }
}
