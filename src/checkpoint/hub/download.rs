//! One file from the hub into the cache: resumed where it was cut, hashed as it comes, renamed into place when it is
//! right. An answer that cannot be the file takes nothing away of what is there.

use super::cache::RepoCache;
use super::listing::Content;
use super::wire::{Failure, MAX_ATTEMPTS, Patience, Wire, number};
use super::{Event, ModelId, Watch};
use ring::digest;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use ureq::http::{HeaderMap, StatusCode};

const CHUNK_BYTES: usize = 1 << 20;

/// What is to be had.
pub(super) struct Download<'a> {
    pub(super) wire: &'a Wire,
    pub(super) cache: &'a RepoCache,
    pub(super) id: &'a ModelId,
    pub(super) commit: &'a str,
    pub(super) file: &'a str,
    pub(super) url: &'a str,
    pub(super) content: &'a Content,
}

impl Download<'_> {
    /// Makes the file part of its commit in the cache; its bytes are fetched if they are not there. All of it under the
    /// blob's lock.
    pub(super) fn run(&self, watch: Watch) -> Result<(), Failure> {
        let hash = &self.content.hash;
        let blob = self.cache.blob(hash);
        let lock = self.cache.lock(hash, || watch(Event::Waiting { file: self.file.into() }));
        let _held = lock.map_err(|error| Failure::lasting(format!("locking {}: {error}", blob.display())))?;
        if !self.cache.has_blob(hash, self.content.n_bytes) {
            self.fetch(&blob, watch)?;
        }
        self.cache.link(self.commit, self.file, hash).map_err(writing(&blob))
    }

    fn fetch(&self, blob: &Path, watch: Watch) -> Result<(), Failure> {
        let partial = self.cache.partial(&self.content.hash);
        let mut partial = Partial::open(partial, self.content).map_err(writing(blob))?;
        watch(self.begins(&partial));
        let mut is_resumed = partial.n_bytes > 0;
        loop {
            self.complete(&mut partial, watch).map_err(|failure| partial.keep(failure))?;
            match partial.check() {
                Ok(()) => break,
                // What was there before may be at fault: once, all of it is fetched again.
                Err(_) if is_resumed => {
                    is_resumed = false;
                    partial.restart().map_err(writing(blob))?;
                    watch(self.begins(&partial));
                }
                Err(failure) => return Err(partial.discard(failure)),
            }
        }
        watch(Event::Done);
        partial.file.sync_all().and_then(|()| fs::rename(&partial.path, blob)).map_err(writing(blob))
    }

    fn begins(&self, partial: &Partial) -> Event {
        let (total, done) = (self.content.n_bytes, partial.n_bytes);
        Event::Begin { repo: self.id.to_string(), file: self.file.into(), total, done }
    }

    /// Fetches what is missing, in as many attempts as bring something and a few that do not.
    fn complete(&self, partial: &mut Partial, watch: Watch) -> Result<(), Failure> {
        let mut patience = Patience::new(MAX_ATTEMPTS);
        // A server that sends all of it again and again brings nothing until it gets farther than before.
        let mut farthest = partial.n_bytes;
        while partial.n_missing() > 0 {
            if let Err(failure) = self.transfer(partial, watch) {
                if partial.n_bytes > farthest {
                    farthest = partial.n_bytes;
                    patience = Patience::new(MAX_ATTEMPTS);
                }
                patience.bear(failure)?;
            }
        }
        Ok(())
    }

    /// One request.
    fn transfer(&self, partial: &mut Partial, watch: Watch) -> Result<(), Failure> {
        let rest = (partial.n_bytes > 0).then(|| format!("bytes={}-", partial.n_bytes));
        let response = self.wire.get(self.url, rest)?;
        if response.status() == StatusCode::OK && partial.n_bytes > 0 {
            self.check_whole(response.headers(), &partial.path)?;
            partial.restart().map_err(writing(&partial.path))?;
            watch(self.begins(partial));
        } else {
            self.check_announced(response.headers(), partial.n_bytes)?;
        }
        let start = partial.n_bytes;
        let mut body = response.into_body().into_reader();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let n = match body.read(&mut chunk) {
                Ok(n) => n,
                Err(error) => return Err(self.wire.broken(error, partial.n_bytes)),
            };
            if n as u64 > partial.n_missing() {
                let failure = self.content.differs(format!("more than {} bytes came", self.content.n_bytes));
                return Err(if partial.n_bytes > start { partial.discard(failure) } else { failure });
            }
            if n == 0 && partial.n_missing() > 0 {
                return Err(self.wire.broken(io::ErrorKind::UnexpectedEof.into(), partial.n_bytes));
            }
            if n == 0 {
                return Ok(());
            }
            partial.append(&chunk[..n]).map_err(writing(&partial.path))?;
            watch(Event::Bytes(n as u64));
        }
    }

    /// Refuses an answer whose headers announce another file than the listing, or another place in it.
    fn check_announced(&self, headers: &HeaderMap, start: u64) -> Result<(), Failure> {
        let n_bytes = self.content.n_bytes;
        let rest = number(headers, &CONTENT_LENGTH);
        if rest.is_some_and(|rest| rest != n_bytes - start) {
            let rest = rest.unwrap_or_default();
            return Err(self.content.differs(format!("the server offers {} bytes", start.saturating_add(rest))));
        }
        let range = headers.get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        if start > 0 && !range.is_some_and(|range| range.starts_with(&format!("bytes {start}-"))) {
            return Err(Failure::lasting(format!("asked from byte {start} on, the server answers {range:?}")));
        }
        Ok(())
    }

    /// Refuses an answer with all of the file, where its rest was asked for, unless it announces the listing's length: a
    /// page of another server has an answer for everything.
    fn check_whole(&self, headers: &HeaderMap, partial: &Path) -> Result<(), Failure> {
        if number(headers, &CONTENT_LENGTH).is_none() {
            let partial = partial.display();
            let what = "asked for the rest, the server sends something of unknown length";
            return Err(Failure::lasting(format!("{what}; remove {partial} to begin anew")));
        }
        self.check_announced(headers, 0)
    }
}

/// A failure to write below the cache.
fn writing(path: &Path) -> impl Fn(io::Error) -> Failure {
    let path = path.display().to_string();
    move |error| Failure::lasting(format!("writing {path}: {error}"))
}

/// A file that is not whole yet.
struct Partial<'a> {
    path: PathBuf,
    file: File,
    n_bytes: u64,
    hasher: digest::Context,
    content: &'a Content,
}

impl<'a> Partial<'a> {
    /// Goes on where an earlier run stopped.
    fn open(path: PathBuf, content: &'a Content) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        let mut partial = Self { path, file, n_bytes: 0, hasher: content.hasher(), content };
        if partial.file.metadata()?.len() > content.n_bytes {
            partial.restart()?;
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let n = partial.file.read(&mut chunk)?;
            if n == 0 {
                return Ok(partial);
            }
            partial.hasher.update(&chunk[..n]);
            partial.n_bytes += n as u64;
        }
    }

    fn n_missing(&self) -> u64 {
        self.content.n_bytes - self.n_bytes
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.n_bytes += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.n_bytes, self.hasher) = (0, self.content.hasher());
        Ok(())
    }

    /// Compares the hash of all bytes with the one that the hub announced.
    fn check(&self) -> Result<(), Failure> {
        let hash = self.hasher.clone().finish();
        let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if hash == self.content.hash {
            return Ok(());
        }
        Err(Failure::lasting(format!("what came hashes to {hash}, the hub's listing says {}", self.content.hash)))
    }

    /// Leaves what came for another run, if anything did.
    fn keep(&self, failure: Failure) -> Failure {
        if self.n_bytes > 0 { failure } else { self.discard(failure) }
    }

    /// Leaves nothing of what cannot be right.
    fn discard(&self, failure: Failure) -> Failure {
        match fs::remove_file(&self.path) {
            Ok(()) => failure,
            Err(error) => Failure::lasting(format!("{}; removing {}: {error}", failure.message, self.path.display())),
        }
    }
}
