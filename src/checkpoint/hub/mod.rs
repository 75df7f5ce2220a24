//! Models by their id on the Hugging Face hub: an id becomes a directory of the hub's standard cache that holds what an
//! engine needs, and nothing behind this module knows where it came from.
//!
//! Stands before the first station of the walk. One request says which commit a revision is and what each of its files
//! must hash to; only what the cache lacks is asked for, the configuration before the weights. Of a model that is described
//! and not run, headers take the place of weights. The cache and the environment variables are those of huggingface_hub, so
//! that models are shared with it in both directions.
//!
//! The crate hf-hub is not used: version 0.5 gives its downloads no time limit, hides status and headers, appends to a
//! partial file whatever comes and checks nothing of it; version 1.0 needs an async runtime and a C++ build.

mod cache;
mod download;
mod header;
mod id;
mod listing;
mod settings;
mod wire;

pub(super) use cache::snapshot_name;
pub use id::{ModelId, Place, Revision};

use super::shards::{self, INDEX, SINGLE};
use super::{Header, ModelConfig, Source, safetensors};
use crate::{Error, Result};
use cache::RepoCache;
use download::Download;
use header::Beginning;
use listing::{Content, Listing};
use settings::Settings;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use wire::{Failure, MAX_ATTEMPTS, Patience, Wire};

const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
/// Small files that a model may have; no code, no pickle.
const OPTIONAL: [&str; 5] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// Limit of every file but the weights, by the hub's own word, before a byte of it comes.
const MAX_SMALL_BYTES: u64 = 64 << 20;

/// Limit of all headers of a model together, which stay in memory: room for half a million tensors of 130 bytes.
const MAX_HEADERS_BYTES: u64 = 64 << 20;

/// What of a model's weights is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Weights {
    /// All: to run the model.
    All,
    /// Names, shapes and types: to describe it.
    Headers,
}

/// What happens while a model is fetched, for a person to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A file is fetched: `done` of its `total` bytes are there from an earlier attempt.
    Begin {
        /// `org/name`.
        repo: String,
        /// Its name in the repository.
        file: String,
        /// Bytes.
        total: u64,
        /// Bytes.
        done: u64,
    },
    /// The header of a file of weights is fetched, and not the file.
    Header {
        /// `org/name`.
        repo: String,
        /// Its name in the repository.
        file: String,
    },
    /// So many bytes came.
    Bytes(u64),
    /// The file is whole and right.
    Done,
    /// Another process fetches the same file; this one waits for it.
    Waiting {
        /// Its name in the repository.
        file: String,
    },
    /// What the cache has is used without the hub's word on it.
    Warning {
        /// What was found, why the hub was not asked, and what may be missing.
        message: String,
    },
}

/// Is told of events.
pub type Watch<'a> = &'a mut dyn FnMut(Event);

/// The hub, as the environment describes it.
pub struct Hub {
    settings: Settings,
    wire: Wire,
    /// A model that several roles name is looked up once, so that all of them get the same commit.
    known: HashMap<(ModelId, Revision, Weights), Source>,
}

impl Hub {
    /// Reads the environment variables of huggingface_hub. Nothing is asked for yet.
    pub fn from_env() -> Result<Self> {
        let settings = Settings::from_env()?;
        let no_address = || Error::argument("HF_ENDPOINT", format!("{:?} is not an address", settings.endpoint));
        let wire = Wire::new(&settings).ok_or_else(no_address)?;
        Ok(Self { settings, wire, known: HashMap::new() })
    }

    /// A model at a revision, fetched as far as the cache lacks it. Of weights that are only described, headers are fetched
    /// that the cache lacks, and stay in memory.
    ///
    /// A commit that the cache has with every file, or a note that there is none, is taken without a request. Without a
    /// network, what the cache has is used if it can be run, with a warning; with `HF_HUB_OFFLINE` nobody is asked.
    pub fn open(&mut self, id: &ModelId, revision: &Revision, weights: Weights, watch: Watch) -> Result<Source> {
        let key = (id.clone(), revision.clone(), weights);
        if !self.known.contains_key(&key) {
            let repo = Repo { hub: self, id, revision, weights, cache: RepoCache::new(&self.settings.cache, id) };
            let source = repo.locate(watch)?;
            self.known.insert(key.clone(), source);
        }
        Ok(self.known[&key].clone())
    }
}

/// One repository at one revision.
struct Repo<'a> {
    hub: &'a Hub,
    id: &'a ModelId,
    revision: &'a Revision,
    weights: Weights,
    cache: RepoCache,
}

impl Repo<'_> {
    fn locate(&self, watch: Watch) -> Result<Source> {
        let cached = self.cached();
        if self.hub.settings.offline {
            let cached = cached?;
            if !cached.unknown.is_empty() {
                watch(Event::Warning { message: format!("offline; {}", cached.describe()) });
            }
            return Ok(Source::Directory(cached.directory));
        }
        let cached = cached.ok();
        if let Some(cached) = &cached
            && cached.unknown.is_empty()
            && self.revision.is_commit()
        {
            return Ok(Source::directory(&cached.directory));
        }
        // Who has the model already should not wait for a dead network more than once.
        let attempts = if cached.is_some() { 1 } else { MAX_ATTEMPTS };
        match (self.listing(attempts), cached) {
            (Ok(listing), _) => self.fetch(&listing, watch),
            (Err(failure), Some(cached)) if failure.wait.is_some() => {
                watch(Event::Warning { message: format!("{}; {}", failure.message, cached.describe()) });
                Ok(Source::Directory(cached.directory))
            }
            (Err(failure), _) => Err(self.refused(None, failure)),
        }
    }

    /// What the cache has, if a model can be run with it.
    fn cached(&self) -> Result<Cached> {
        let lacks = |what: String| {
            let cache = self.cache.root().display();
            let message = format!("{what} not in the cache {cache}; unset HF_HUB_OFFLINE to fetch what is missing");
            self.error(None, None, message)
        };
        let Some(commit) = self.cache.commit(self.revision) else { return Err(lacks("it is".into())) };
        let directory = self.cache.snapshot(&commit);
        let missing = missing_files(&Source::directory(&directory))?;
        if missing.is_empty() {
            let unknown = OPTIONAL.into_iter().filter(|file| !self.cache.knows(&commit, file)).collect();
            return Ok(Cached { directory, unknown });
        }
        let be = if missing.len() == 1 { "is" } else { "are" };
        Err(lacks(format!("{} of commit {commit} {be}", missing.join(", "))))
    }

    fn listing(&self, attempts: u32) -> Result<Listing, Failure> {
        let Settings { endpoint, .. } = &self.hub.settings;
        let url =
            format!("{endpoint}/api/models/{}/revision/{}?blobs=true", self.id, wire::escaped(self.revision.as_str()));
        let mut patience = Patience::new(attempts);
        loop {
            match Listing::get(&self.hub.wire, &url) {
                Ok(listing) => return Ok(listing),
                Err(failure) => patience.bear(failure)?,
            }
        }
    }

    /// Brings what the cache lacks. A configuration that is refused ends it before the weights.
    fn fetch(&self, listing: &Listing, watch: Watch) -> Result<Source> {
        let directory = self.cache.snapshot(&listing.commit);
        for file in REQUIRED.iter().chain(OPTIONAL.iter().filter(|file| listing.has(file))) {
            self.fetch_file(listing, file, MAX_SMALL_BYTES, watch)?;
        }
        let source = Source::directory(&directory);
        ModelConfig::read(&source)?;
        let mut headers = Headers::default();
        for file in self.weights_files(listing, &source, watch)? {
            if self.weights == Weights::All || self.is_cached(listing, &file)? {
                self.fetch_file(listing, &file, u64::MAX, watch)?;
            } else {
                self.fetch_header(listing, file, &mut headers, watch)?;
            }
        }
        for file in OPTIONAL.iter().filter(|file| !listing.has(file) && !self.cache.knows(&listing.commit, file)) {
            // A note saves the next run a request and no more: a cache that cannot be written is still good to read.
            let _ = self.cache.note_absent(&listing.commit, file);
        }
        if !headers.all.is_empty() {
            // The revision is not noted: without the hub it stays the commit that the cache has whole.
            return Ok(Source::Described { directory, headers: headers.all.into() });
        }
        let noted = self.cache.note_commit(self.revision, &listing.commit);
        noted.map_err(|error| self.error(None, None, format!("writing to the cache: {error}")))?;
        Ok(source)
    }

    /// The names of the files of weights; their index is fetched for them.
    fn weights_files(&self, listing: &Listing, source: &Source, watch: Watch) -> Result<BTreeSet<String>> {
        if listing.has(SINGLE) {
            return Ok([SINGLE.to_string()].into());
        }
        if listing.has(INDEX) {
            self.fetch_file(listing, INDEX, MAX_SMALL_BYTES, watch)?;
            return shards::names_in_index(source);
        }
        let foreign = shards::foreign_weights(&listing.names());
        let message = foreign.unwrap_or_else(|| format!("has neither {SINGLE} nor {INDEX}"));
        Err(self.error(None, None, message))
    }

    /// What the listing says of a file that is needed.
    fn content<'l>(&self, listing: &'l Listing, file: &str) -> Result<&'l Content> {
        if !listing.has(file) {
            return Err(self.error(Some(file), None, "the repository has no such file"));
        }
        let unsaid = || self.error(Some(file), None, "the hub's listing does not say its size and hash");
        listing.content(file).ok_or_else(unsaid)
    }

    /// Whether the cache has the bytes of a file, by its name or by their hash.
    fn is_cached(&self, listing: &Listing, file: &str) -> Result<bool> {
        let content = self.content(listing, file)?;
        Ok(self.is_in_snapshot(listing, file, content) || self.cache.has_blob(&content.hash, content.n_bytes))
    }

    fn is_in_snapshot(&self, listing: &Listing, file: &str, content: &Content) -> bool {
        let path = self.cache.snapshot(&listing.commit).join(file);
        path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == content.n_bytes)
    }

    /// Brings one file of at most `limit` bytes, if the cache lacks it.
    fn fetch_file(&self, listing: &Listing, file: &str, limit: u64, watch: Watch) -> Result<()> {
        let content = self.content(listing, file)?;
        if content.n_bytes > limit {
            return Err(self.error(Some(file), None, format!("{} bytes, the limit is {limit}", content.n_bytes)));
        }
        if self.is_in_snapshot(listing, file, content) {
            return Ok(());
        }
        let (wire, cache, id, url) = (&self.hub.wire, &self.cache, self.id, self.url(listing, file));
        let download = Download { wire, cache, id, commit: &listing.commit, file, url: &url, content };
        download.run(watch).map_err(|failure| self.refused(Some(file), failure))
    }

    /// Brings the header of a file of weights to the others, and nothing into the cache.
    fn fetch_header(&self, listing: &Listing, file: String, headers: &mut Headers, watch: Watch) -> Result<()> {
        let content = self.content(listing, &file)?;
        let path = self.cache.snapshot(&listing.commit).join(&file);
        let url = self.url(listing, &file);
        watch(Event::Header { repo: self.id.to_string(), file: file.clone() });
        let mut beginning = Beginning::new(&self.hub.wire, &url, content);
        let refused = |failure| self.refused(Some(&file), failure);
        beginning.reach(safetensors::LENGTH_BYTES.min(content.n_bytes)).map_err(refused)?;
        let end = safetensors::header_end(&path, &beginning.bytes, content.n_bytes)?;
        headers.n_bytes += end;
        if headers.n_bytes > MAX_HEADERS_BYTES {
            let so_far = headers.n_bytes;
            let message = format!("with its header all are {so_far} bytes, the limit is {MAX_HEADERS_BYTES}");
            return Err(self.error(Some(&file), None, message));
        }
        beginning.reach(end).map_err(refused)?;
        let start = beginning.bytes[..end as usize].into();
        headers.all.push(Header { n_bytes: content.n_bytes, start, file });
        Ok(())
    }

    fn url(&self, listing: &Listing, file: &str) -> String {
        let endpoint = &self.hub.settings.endpoint;
        format!("{endpoint}/{}/resolve/{}/{}", self.id, listing.commit, wire::escaped(file))
    }

    fn error(&self, file: Option<&str>, status: Option<u16>, message: impl Into<String>) -> Error {
        Error::Hub {
            repo: self.id.to_string(),
            revision: self.revision.to_string(),
            file: file.map(str::to_string),
            status,
            message: message.into(),
        }
    }

    /// A failure with what can be done about it.
    fn refused(&self, file: Option<&str>, failure: Failure) -> Error {
        let token = match self.hub.wire.has_token() {
            true => "the token (HF_TOKEN, or the file of `hf auth login`) is not one that may read it",
            false => "set HF_TOKEN to a token that may read it, or run `hf auth login`",
        };
        let message = match (failure.status, failure.code.as_deref()) {
            (Some(401 | 403), Some("GatedRepo")) => {
                let page = format!("{}/{}", self.hub.settings.endpoint, self.id);
                format!("a gated repository, ask for access at {page}; {token}")
            }
            // The hub does not tell strangers which of the two it is.
            (Some(401), _) => format!("no such repository, nor a directory of that name; or a private one: {token}"),
            (Some(403), _) => format!("access is refused; {token}"),
            (Some(404), Some("RevisionNotFound")) => "the repository has no such branch, tag or commit".into(),
            (Some(404), _) if file.is_some() => "the repository has no such file".into(),
            (Some(404), _) => "no such repository, nor a directory of that name".into(),
            _ if failure.wait.is_some() && file.is_some() => {
                format!("{}; run again to go on where it stopped", failure.message)
            }
            _ => failure.message,
        };
        self.error(file, failure.status, message)
    }
}

/// Headers of a model as they come.
#[derive(Default)]
struct Headers {
    all: Vec<Header>,
    /// All of them together.
    n_bytes: u64,
}

/// A snapshot that a model can be run with.
struct Cached {
    directory: PathBuf,
    /// Optional files that are not there, and the hub was never asked for: whoever fetched the rest left them out.
    unknown: Vec<&'static str>,
}

impl Cached {
    /// What is used, and what may be missing in it.
    fn describe(&self) -> String {
        let name = snapshot_name(&self.directory).unwrap_or_default();
        match self.unknown.is_empty() {
            true => format!("using {name} from the cache"),
            false => format!("using {name} from the cache, which may lack {}", self.unknown.join(", ")),
        }
    }
}

/// What a directory lacks of a whole model; files that may be absent are not missed.
fn missing_files(source: &Source) -> Result<Vec<String>> {
    let has = |file: &str| source.path(file).is_file();
    let mut missing: Vec<String> = REQUIRED.iter().filter(|file| !has(file)).map(|file| file.to_string()).collect();
    if has(INDEX) && !has(SINGLE) {
        missing.extend(shards::names_in_index(source)?.into_iter().filter(|file| !has(file)));
    } else if !has(SINGLE) {
        missing.push(SINGLE.into());
    }
    Ok(missing)
}
