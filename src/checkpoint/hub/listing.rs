//! What the hub says of a revision: its commit, its files, and what each must hold.

use super::id::{is_commit, is_hex};
use super::wire::{Failure, Wire};
use ring::digest;
use serde::Deserialize;
use std::io::Read;

/// Far more than any model's; the hub names every file in it.
const MAX_BYTES: u64 = 64 << 20;

/// A commit and the files of its repository.
pub(super) struct Listing {
    pub(super) commit: String,
    files: Vec<(String, Option<Content>)>,
}

/// The size of a file and the hash of its bytes.
#[derive(Clone)]
pub(super) struct Content {
    pub(super) n_bytes: u64,
    /// In hexadecimal; the blob's name in the cache.
    pub(super) hash: String,
    kind: HashKind,
}

#[derive(Clone, Copy)]
enum HashKind {
    /// Of the bytes: large files.
    Sha256,
    /// Of git's header and the bytes: files that git itself keeps.
    GitBlob,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    blob_id: Option<String>,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Listing {
    /// Asks for it.
    pub(super) fn get(wire: &Wire, url: &str) -> Result<Self, Failure> {
        let mut text = Vec::new();
        let mut body = wire.get(url, None)?.into_body().into_reader().take(MAX_BYTES + 1);
        body.read_to_end(&mut text).map_err(|error| wire.broken(error, 0))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(Failure::lasting(format!("the listing has more than {MAX_BYTES} bytes")));
        }
        let foreign = |what: String| Failure::lasting(format!("the answer is not a hub's listing: {what}"));
        let info: Info = serde_json::from_slice(&text).map_err(|error| foreign(error.to_string()))?;
        if !is_commit(&info.sha) {
            return Err(foreign(format!("sha {:?} is not a commit", info.sha)));
        }
        let files = info.siblings.into_iter().map(|file| (file.rfilename.clone(), Content::of(file)));
        Ok(Self { commit: info.sha, files: files.collect() })
    }

    /// The names of all files.
    pub(super) fn names(&self) -> Vec<String> {
        self.files.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Whether the repository has `file`.
    pub(super) fn has(&self, file: &str) -> bool {
        self.files.iter().any(|(name, _)| name == file)
    }

    /// What `file` holds; none where the listing does not say.
    pub(super) fn content(&self, file: &str) -> Option<&Content> {
        self.files.iter().find(|(name, _)| name == file)?.1.as_ref()
    }
}

impl Content {
    fn of(file: Sibling) -> Option<Self> {
        let (n_bytes, hash, kind) = match file.lfs {
            Some(lfs) => (lfs.size, lfs.sha256, HashKind::Sha256),
            None => (file.size?, file.blob_id?, HashKind::GitBlob),
        };
        let n_chars = match kind {
            HashKind::Sha256 => 64,
            HashKind::GitBlob => 40,
        };
        (hash.len() == n_chars && is_hex(&hash)).then_some(Self { n_bytes, hash, kind })
    }

    /// Something came or was announced that cannot be the file.
    pub(super) fn differs(&self, what: String) -> Failure {
        Failure::lasting(format!("{what}, the hub's listing says {}", self.n_bytes))
    }

    /// A hasher that has read nothing of the file yet.
    pub(super) fn hasher(&self) -> digest::Context {
        match self.kind {
            HashKind::Sha256 => digest::Context::new(&digest::SHA256),
            HashKind::GitBlob => {
                let mut hasher = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
                hasher.update(format!("blob {}\0", self.n_bytes).as_bytes());
                hasher
            }
        }
    }
}
