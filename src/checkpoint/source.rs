//! Where the bytes of a model come from: a directory on disk (for a description, with headers in place of weights), files in
//! memory, or a formula.
//!
//! Files are read with positioned reads, never mapped: a file that is truncated while it is read is an error here, where
//! a mapping would be a signal. Whatever names a file inside a model (the shard index does) is held to [`Source::shard`].

use super::made::{Made, MadeWeights};
use super::shapes::Shape;
use crate::{Error, Result};
use std::borrow::Cow;
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// How much of two files is held at a time to compare them.
const COMPARED_BYTES: usize = 1 << 20;

/// The bytes of a file in memory: compiled into the binary, or owned.
pub type FileBytes = Cow<'static, [u8]>;

/// The files of one model.
#[derive(Debug, Clone)]
pub enum Source {
    /// A directory on disk.
    Directory(PathBuf),
    /// A directory on disk that lacks files of weights: enough to describe a model, not to run it.
    Described {
        /// The directory.
        directory: PathBuf,
        /// The headers of what it lacks.
        headers: Arc<[Header]>,
    },
    /// Files in memory.
    Memory {
        /// Stands for the path in messages.
        name: &'static str,
        /// File names and their bytes.
        files: Arc<[(&'static str, FileBytes)]>,
    },
    /// No files: a shape, and weights made from a seed.
    Made(Made),
}

/// A safetensors file of which only the header is at hand.
#[derive(Debug)]
pub struct Header {
    /// Its name in the directory.
    pub file: String,
    /// Length of the whole file.
    pub n_bytes: u64,
    /// The file from its beginning at least to the end of its header; shared with what is opened.
    pub start: Arc<[u8]>,
}

/// What makes two sources the same model: the canonical directory, the address of the table in memory, shape and seed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The directory after links are resolved.
    Directory(PathBuf),
    /// The table in memory.
    Memory(usize),
    /// Shape and seed.
    Made(Made),
}

impl Source {
    /// The directory `path`. Nothing is read yet.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Source::Directory(path.into())
    }

    /// Files in memory, under a name that stands for the path in messages.
    pub fn memory(name: &'static str, files: impl IntoIterator<Item = (&'static str, FileBytes)>) -> Self {
        Source::Memory { name, files: files.into_iter().collect() }
    }

    /// A model of a published shape with weights made from `seed`.
    pub fn made(shape: &'static Shape, seed: u64) -> Self {
        Source::Made(Made { shape, seed })
    }

    /// The path of `file` as messages show it.
    pub fn path(&self, file: &str) -> PathBuf {
        self.root().join(file)
    }

    /// The directory, or the name of the files in memory, as messages show it.
    pub fn root(&self) -> PathBuf {
        match self {
            Source::Directory(dir) | Source::Described { directory: dir, .. } => dir.clone(),
            Source::Memory { name, .. } => PathBuf::from(name),
            Source::Made(made) => PathBuf::from(made.name()),
        }
    }

    /// What two sources of the same model have in common.
    pub fn identity(&self) -> Result<Identity> {
        match self {
            Source::Directory(dir) | Source::Described { directory: dir, .. } => {
                Ok(Identity::Directory(canonical_directory(dir)?))
            }
            Source::Memory { files, .. } => Ok(Identity::Memory(files.as_ptr() as usize)),
            Source::Made(made) => Ok(Identity::Made(made.clone())),
        }
    }

    /// The names of the files, sorted; directories inside the directory are left out.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = match self {
            Source::Memory { files, .. } => files.iter().map(|(name, _)| name.to_string()).collect(),
            Source::Made(_) => ["config.json", "model.safetensors", "tokenizer.json"].map(str::to_string).to_vec(),
            Source::Directory(dir) => names_in(dir)?,
            Source::Described { directory, headers } => {
                let described = headers.iter().map(|header| header.file.clone());
                names_in(directory)?.into_iter().chain(described).collect()
            }
        };
        names.sort();
        // What a directory has the wrong bytes of is described too.
        names.dedup();
        Ok(names)
    }

    /// Opens `file` for positioned reads; `None` where there is no such file.
    pub fn open(&self, file: &str) -> Result<Option<Blob>> {
        let path = self.path(file);
        match self {
            Source::Memory { files, .. } => {
                let found = files.iter().find(|(name, _)| *name == file);
                Ok(found.map(|(_, bytes)| Blob::memory(path, bytes.clone())))
            }
            Source::Made(made) => Ok(match file {
                "config.json" => Some(Blob::memory(path, made.config().into())),
                "model.safetensors" => {
                    let weights = made.weights()?;
                    Some(Blob { path, n_bytes: weights.n_bytes(), bytes: Bytes::Made(weights) })
                }
                "tokenizer.json" => Some(Blob::memory(path, made.tokenizer().into())),
                _ => None,
            }),
            Source::Described { headers, .. } => match headers.iter().find(|header| header.file == file) {
                Some(header) => Ok(Some(header.blob(path))),
                None => open_regular(path),
            },
            Source::Directory(_) => open_regular(path),
        }
    }

    /// All of `file` if it has at most `limit` bytes; `None` where there is no such file.
    pub fn read(&self, file: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(blob) = self.open(file)? else { return Ok(None) };
        if blob.n_bytes > limit {
            return Err(Error::file(&blob.path, format!("{} bytes, the limit is {limit}", blob.n_bytes)));
        }
        blob.read(0, blob.n_bytes as usize).map(Some)
    }

    /// Whether `file` holds the same bytes in both, or is in neither.
    pub fn same_bytes(&self, other: &Source, file: &str) -> Result<bool> {
        let (a, b) = match (self.open(file)?, other.open(file)?) {
            (Some(a), Some(b)) => (a, b),
            (a, b) => return Ok(a.is_none() && b.is_none()),
        };
        if a.n_bytes != b.n_bytes {
            return Ok(false);
        }
        for at in (0..a.n_bytes).step_by(COMPARED_BYTES) {
            let n_bytes = (a.n_bytes - at).min(COMPARED_BYTES as u64) as usize;
            if a.read(at, n_bytes)? != b.read(at, n_bytes)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Opens a file whose name was read from another file: a plain relative name that stays inside the model.
    ///
    /// Links may leave the directory only for the `blobs` of the same hub snapshot, or of its whole cache, which is how
    /// the hub's cache is laid out.
    pub(super) fn shard(&self, file: &str, named_by: &Path) -> Result<Blob> {
        check_plain(file, named_by)?;
        let absent = || Error::file(named_by, format!("names the shard {file:?}, which is not there"));
        let on_disk = match self {
            Source::Directory(dir) => Some(dir),
            Source::Described { directory, headers } => {
                headers.iter().all(|header| header.file != file).then_some(directory)
            }
            Source::Memory { .. } | Source::Made(_) => None,
        };
        if let Some(dir) = on_disk {
            let target = self.path(file).canonicalize().map_err(|_| absent())?;
            if !inside_model(&canonical_directory(dir)?, &target) {
                let message = format!("is a link to {:?}, outside the model's directory", target.display().to_string());
                return Err(Error::file(self.path(file), message));
            }
        }
        self.open(file)?.ok_or_else(absent)
    }
}

impl Header {
    /// As the whole file, of which what comes later cannot be read.
    fn blob(&self, path: PathBuf) -> Blob {
        Blob { path, n_bytes: self.n_bytes, bytes: Bytes::Start(self.start.clone()) }
    }
}

/// Refuses the name of a shard that could lead out of its directory.
pub(super) fn check_plain(file: &str, named_by: &Path) -> Result<()> {
    let mut parts = Path::new(file).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    // A backslash or a drive is a separator elsewhere: the same index must mean the same file everywhere.
    if !plain || file.contains(['/', '\\', ':', '\0']) {
        return Err(Error::file(named_by, format!("names the shard {file:?}, which is not a plain file name")));
    }
    Ok(())
}

/// Whether two sources are the same model, so that it is loaded once.
pub fn same_files(a: &Source, b: &Source) -> Result<bool> {
    Ok(a.identity()? == b.identity()?)
}

fn canonical_directory(dir: &Path) -> Result<PathBuf> {
    let canonical = dir.canonicalize().map_err(|e| Error::file(dir, e))?;
    if canonical.is_dir() {
        return Ok(canonical);
    }
    let is_gguf = canonical.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let message =
        if is_gguf { "GGUF is not read, use the directory of the same model's safetensors" } else { "not a directory" };
    Err(Error::file(dir, message))
}

fn names_in(dir: &Path) -> Result<Vec<String>> {
    canonical_directory(dir)?;
    let entries = fs::read_dir(dir).map_err(|e| Error::file(dir, e))?;
    let entries = entries.collect::<io::Result<Vec<_>>>().map_err(|e| Error::file(dir, e))?;
    let plain = entries.iter().filter(|e| !e.path().is_dir());
    Ok(plain.filter_map(|e| e.file_name().into_string().ok()).collect())
}

fn inside_model(canonical: &Path, target: &Path) -> bool {
    let snapshots = canonical.parent().filter(|p| p.file_name().is_some_and(|name| name == "snapshots"));
    let repository = snapshots.and_then(Path::parent);
    // huggingface_hub 2 keeps what several repositories share beside them.
    let is_cached = |p: &&Path| p.file_name().is_some_and(|name| name.to_string_lossy().starts_with("models--"));
    let cache = repository.filter(is_cached).and_then(Path::parent);
    let blobs = repository.into_iter().chain(cache).map(|directory| directory.join("blobs"));
    target.starts_with(canonical) || blobs.into_iter().any(|blobs| target.starts_with(blobs))
}

/// The kind is asked for before opening, because opening a FIFO waits for a writer.
fn open_regular(path: PathBuf) -> Result<Option<Blob>> {
    match fs::metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::file(path, e)),
        Ok(metadata) if !metadata.is_file() => return Err(Error::file(path, "not a regular file")),
        Ok(_) => {}
    }
    let file = File::open(&path).map_err(|e| Error::file(&path, e))?;
    let metadata = file.metadata().map_err(|e| Error::file(&path, e))?;
    let bytes = Bytes::File { file, modified: metadata.modified().ok() };
    Ok(Some(Blob { path, n_bytes: metadata.len(), bytes }))
}

/// An open file of a model.
#[derive(Debug)]
pub struct Blob {
    /// The path, for messages.
    pub path: PathBuf,
    /// Length when it was opened.
    pub n_bytes: u64,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    File { file: File, modified: Option<SystemTime> },
    Memory(FileBytes),
    Start(Arc<[u8]>),
    Made(MadeWeights),
}

impl Blob {
    fn memory(path: PathBuf, bytes: FileBytes) -> Self {
        Blob { path, n_bytes: bytes.len() as u64, bytes: Bytes::Memory(bytes) }
    }

    /// `n_bytes` bytes at `offset`. The caller has checked them against [`Blob::n_bytes`], so a short read means that
    /// the file changed since.
    pub fn read(&self, offset: u64, n_bytes: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; n_bytes];
        self.read_into(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// As [`Blob::read`], into `bytes`.
    pub fn read_into(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let ends_early = || Error::file_at(&self.path, offset, "the file ends early");
        let mut copy_of = |all: &[u8]| {
            let from = usize::try_from(offset).ok().and_then(|start| all.get(start..)?.get(..bytes.len()));
            bytes.copy_from_slice(from.ok_or_else(ends_early)?);
            Ok(())
        };
        match &self.bytes {
            Bytes::Memory(all) => copy_of(all),
            Bytes::Start(all) => copy_of(all),
            Bytes::File { file, .. } => read_exact_at(file, bytes, offset).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => ends_early(),
                _ => Error::file_at(&self.path, offset, e),
            }),
            Bytes::Made(weights) => {
                weights.read(offset, bytes);
                Ok(())
            }
        }
    }

    /// An error where the file was written to since it was opened: what was read may be of two versions. A file that
    /// was replaced by another of its name is another file, and this one is still whole.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let Bytes::File { file, modified } = &self.bytes else { return Ok(()) };
        let now = file.metadata().map_err(|e| Error::file(&self.path, e))?;
        if now.len() == self.n_bytes && now.modified().ok() == *modified {
            return Ok(());
        }
        Err(Error::file(&self.path, "was written to while it was read"))
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                bytes = &mut bytes[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Header, Source};

    #[test]
    fn each_name_stands_once() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["b.safetensors", "a.json"] {
            std::fs::write(directory.path().join(name), "cut short").expect("written");
        }
        let header = |file: &str| Header { file: file.into(), n_bytes: 10, start: [0; 10].into() };
        let headers = [header("c.safetensors"), header("b.safetensors")].into();
        let source = Source::Described { directory: directory.path().into(), headers };
        assert_eq!(source.names().expect("readable"), ["a.json", "b.safetensors", "c.safetensors"]);
    }
}
