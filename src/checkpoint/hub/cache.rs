//! The cache that huggingface_hub and others share. For every repository
//!
//! ```text
//! models--org--name/blobs/HASH             the bytes of a file; HASH.incomplete while they come
//! models--org--name/refs/REVISION          the commit that a branch or tag was last seen at
//! models--org--name/snapshots/COMMIT/FILE  a link to the blob
//! models--org--name/.no_exist/COMMIT/FILE  empty: the hub said that the commit has no such file
//! .locks/models--org--name/HASH.lock       held by whoever writes the blob or links to it
//! .locks/models--org--name/refs.lock       held by whoever writes a ref
//! ```

use super::id::{ModelId, Revision, is_commit};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// A repository's part of the cache.
pub(super) struct RepoCache {
    cache: PathBuf,
    folder: String,
}

impl RepoCache {
    pub(super) fn new(cache: &Path, id: &ModelId) -> Self {
        Self { cache: cache.into(), folder: format!("models--{}", id.as_str().replace('/', "--")) }
    }

    /// The whole cache, for messages.
    pub(super) fn root(&self) -> &Path {
        &self.cache
    }

    fn repository(&self) -> PathBuf {
        self.cache.join(&self.folder)
    }

    /// The directory of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.repository().join("snapshots").join(commit)
    }

    /// Where the bytes that hash to `hash` are.
    pub(super) fn blob(&self, hash: &str) -> PathBuf {
        self.repository().join("blobs").join(hash)
    }

    /// Whether they are there, all `n_bytes` of them.
    pub(super) fn has_blob(&self, hash: &str, n_bytes: u64) -> bool {
        fs::metadata(self.blob(hash)).is_ok_and(|metadata| metadata.len() == n_bytes)
    }

    /// Where they are while they come: the name that huggingface_hub resumed from before it took to random ones.
    pub(super) fn partial(&self, hash: &str) -> PathBuf {
        self.blob(&format!("{hash}.incomplete"))
    }

    /// The commit that a revision is, or was when it was last asked for.
    pub(super) fn commit(&self, revision: &Revision) -> Option<String> {
        if revision.is_commit() {
            return Some(revision.to_string());
        }
        let commit = fs::read_to_string(self.reference(revision)).ok()?;
        Some(commit.trim().to_string()).filter(|commit| is_commit(commit))
    }

    /// Notes which commit a revision is. A cache that cannot be written is still a good cache to read from.
    pub(super) fn note_commit(&self, revision: &Revision, commit: &str) -> io::Result<()> {
        if self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let _held = self.lock("refs", || {})?;
        let path = self.reference(revision);
        make_parent(&path)?;
        // Not among the refs, where others would take it for one.
        let new = self.repository().join("ref.tmp");
        fs::write(&new, commit)?;
        fs::rename(&new, &path)
    }

    fn reference(&self, revision: &Revision) -> PathBuf {
        self.repository().join("refs").join(revision.as_str())
    }

    /// Whether it is known what `file` of a commit is: there, or not to be had.
    pub(super) fn knows(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file() || self.absent(commit, file).is_file()
    }

    /// Notes that a commit has no `file`.
    pub(super) fn note_absent(&self, commit: &str, file: &str) -> io::Result<()> {
        let path = self.absent(commit, file);
        make_parent(&path)?;
        fs::write(path, "")
    }

    fn absent(&self, commit: &str, file: &str) -> PathBuf {
        self.repository().join(".no_exist").join(commit).join(file)
    }

    /// Makes `file` of a commit the blob of `hash`, whose lock the caller holds.
    pub(super) fn link(&self, commit: &str, file: &str, hash: &str) -> io::Result<()> {
        let path = self.snapshot(commit).join(file);
        make_parent(&path)?;
        let target: PathBuf = ["..", "..", "blobs", hash].iter().collect();
        let new = beside(&path);
        // Of a process that ended in between; nobody else is here while the lock is held.
        if new.is_symlink() {
            fs::remove_file(&new)?;
        }
        link_or_move(&target, &new, &self.blob(hash))?;
        fs::rename(&new, &path)
    }

    /// Waits until no other process holds the lock `name`, the hash of a blob or `refs`; `waits` is called if one does.
    pub(super) fn lock(&self, name: &str, waits: impl FnOnce()) -> io::Result<File> {
        let path = self.cache.join(".locks").join(&self.folder).join(format!("{name}.lock"));
        make_parent(&path)?;
        make_parent(&self.blob(name))?;
        let file = File::options().write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waits();
                file.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(file)
    }
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Where something is made that is then renamed to `path`: nobody finds half of it, or nothing for a moment.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

#[cfg(unix)]
fn link_or_move(target: &Path, link: &Path, _blob: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Links need a right on Windows that few have: then the file itself goes there, as huggingface_hub does it.
#[cfg(windows)]
fn link_or_move(target: &Path, link: &Path, blob: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link).or_else(|_| fs::rename(blob, link))
}

/// `org/name@1a2b3c4` for the directory of a snapshot.
pub(crate) fn snapshot_name(directory: &Path) -> Option<String> {
    let commit = directory.file_name()?.to_str().filter(|commit| is_commit(commit))?;
    let snapshots = directory.parent().filter(|parent| parent.ends_with("snapshots"))?;
    let id = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?.replace("--", "/");
    Some(format!("{id}@{}", &commit[..7]))
}
