//! Where the results of a batch go.
//!
//! A file that an earlier run left is appended to where all that is new comes last. Where lines between finished ones
//! run again, the results are written to `OUT.partial` beside it, in order, the finished ones copied as their turn
//! comes; at the end, and on Ctrl-C, that takes the place of the file in one rename. After a crash, or where a
//! write has failed, both are there, and the next run joins them first: at no time is a finished line in neither.

use super::earlier::{self, Earlier};
use super::lines::{Input, Parser};
use crate::cli::output::Stdout;
use crate::{Error, Result};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What is there before anything is written.
pub(super) enum Target {
    /// Standard output, or a pipe or a device.
    Stream(Option<PathBuf>),
    /// A file that is not there yet.
    New(Place),
    /// A file that is there.
    Old { place: Place, file: File, if_there: IfThere },
}

/// What becomes of a file that is there.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum IfThere {
    Resume,
    Overwrite,
}

/// A file and what may stand beside it.
pub(super) struct Place {
    path: PathBuf,
    partial: PathBuf,
}

impl Target {
    /// Looks where `-o` points. Whatever would hinder the writing later is refused here, before models are opened.
    pub(super) fn open(input: &Path, output: Option<&Path>, if_there: IfThere) -> Result<Self> {
        let Some(path) = output.filter(|path| path.as_os_str() != "-") else { return Ok(Target::Stream(None)) };
        let refuse = |error: io::Error| refused(path, &error);
        let is_input = |other: &Path| {
            let both = input.canonicalize().ok().zip(other.canonicalize().ok());
            both.is_some_and(|(input, other)| input == other)
        };
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if path.is_symlink() {
                    return Err(refused(path, &"is a link to a file that is not there"));
                }
                let place = Place::new(path.into());
                if is_input(&place.partial) || place.partial.exists() && if_there == IfThere::Resume {
                    let message = "is there without the file that it completes: rename it to go on from it";
                    return Err(refused(&place.partial, &message));
                }
                File::create_new(path).and_then(|_| fs::remove_file(path)).map_err(refuse)?;
                Ok(Target::New(place))
            }
            Err(error) => Err(refuse(error)),
            Ok(metadata) if metadata.is_dir() => Err(refused(path, &"is a directory")),
            Ok(metadata) if !metadata.is_file() => Ok(Target::Stream(Some(path.into()))),
            Ok(_) => {
                let place = Place::new(path.canonicalize().map_err(refuse)?);
                if is_input(path) || is_input(&place.partial) {
                    return Err(refused(path, &"would take the place of the input file"));
                }
                let file = OpenOptions::new().read(true).write(true).open(&place.path).map_err(refuse)?;
                lock(&file, &place.path)?;
                Ok(Target::Old { place, file, if_there })
            }
        }
    }

    /// The results of an earlier run, checked against the input. Two halves that a crash has left are joined.
    pub(super) fn earlier(&mut self, input: &mut Input, parser: &Parser) -> Result<Vec<Earlier>> {
        let Target::Old { place, file, if_there: IfThere::Resume } = self else { return Ok(Vec::new()) };
        let mut found = earlier::walk(file, &place.path, input, parser)?;
        let partial = match OpenOptions::new().read(true).write(true).open(&place.partial) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            partial => partial.map_err(|error| refused(&place.partial, &error))?,
        };
        lock(&partial, &place.partial)?;
        let mut joined = earlier::walk(&partial, &place.partial, input, parser)?;
        let rest = found.split_off(joined.len().min(found.len()));
        let mut join = || {
            cut(&partial, n_bytes(&joined))?;
            file.seek(SeekFrom::Start(n_bytes(&found)))?;
            place.put(&partial, &mut &*file, n_bytes(&rest))
        };
        join().map_err(|error| failed(&error))?;
        *file = partial;
        joined.extend(rest);
        Ok(joined)
    }

    /// Opens it for the results that are missing in `earlier`.
    pub(super) fn into_writer(self, earlier: &[Earlier]) -> Result<Writer> {
        match self {
            Target::Stream(None) => Ok(Writer::Stdout(Stdout::new())),
            Target::Stream(Some(path)) => {
                let file = OpenOptions::new().write(true).open(&path);
                file.map(Writer::Stream).map_err(|error| refused(&path, &error))
            }
            Target::New(place) => {
                remove(&place.partial)?;
                let file = File::create_new(&place.path).map_err(|error| refused(&place.path, &error))?;
                lock(&file, &place.path)?;
                Ok(Writer::Append(file))
            }
            Target::Old { place, mut file, if_there } => {
                if if_there == IfThere::Overwrite {
                    remove(&place.partial)?;
                }
                let n_first = earlier.iter().take_while(|block| block.finished).count();
                if earlier[n_first..].iter().all(|block| !block.finished) {
                    cut(&file, n_bytes(&earlier[..n_first])).map_err(|error| failed(&error))?;
                    return Ok(Writer::Append(file));
                }
                let open = |file: &mut File| {
                    let partial = File::create(&place.partial)?;
                    fs::set_permissions(&place.partial, file.metadata()?.permissions())?;
                    file.rewind()?;
                    Ok(partial)
                };
                let partial = open(&mut file).map_err(|error: io::Error| refused(&place.partial, &error))?;
                lock(&partial, &place.partial)?;
                Ok(Writer::Replace { place, old: BufReader::new(file), left: n_bytes(earlier), partial })
            }
        }
    }
}

impl Place {
    fn new(path: PathBuf) -> Self {
        let mut partial = path.clone().into_os_string();
        partial.push(".partial");
        Self { path, partial: partial.into() }
    }

    /// Ends the partial file with the rest of the old one, `n_bytes` long, and lets it take that one's place.
    fn put(&self, partial: &File, rest: &mut impl Read, n_bytes: u64) -> io::Result<()> {
        copy(rest, n_bytes, partial)?;
        partial.sync_all()?;
        fs::rename(&self.partial, &self.path)
    }
}

/// Takes results in the order of the input.
pub(super) enum Writer {
    Stdout(Stdout),
    /// A pipe or a device.
    Stream(File),
    Append(File),
    Replace {
        place: Place,
        old: BufReader<File>,
        /// Bytes of results in the old file that are neither kept nor replaced yet.
        left: u64,
        partial: File,
    },
    /// A write has failed. Whatever is there stays as it is, for the next run to go on from.
    Failed,
}

impl Writer {
    /// Whether the results are out of sight.
    pub(super) fn is_a_file(&self) -> bool {
        matches!(self, Writer::Append(_) | Writer::Replace { .. })
    }

    /// Keeps the next bytes of the earlier results.
    pub(super) fn keep(&mut self, n_bytes: u64) -> Result<()> {
        let kept = match self {
            Writer::Replace { old, partial, left, .. } => copy(old, n_bytes, partial).map(|()| *left -= n_bytes),
            Writer::Stdout(_) | Writer::Stream(_) | Writer::Append(_) | Writer::Failed => Ok(()),
        };
        self.check(kept)
    }

    /// Writes whole lines in place of the next bytes of the earlier results.
    pub(super) fn replace(&mut self, n_bytes: u64, text: &str) -> Result<()> {
        let written = match self {
            Writer::Stdout(out) => return out.text(text),
            Writer::Stream(file) | Writer::Append(file) => file.write_all(text.as_bytes()),
            Writer::Replace { old, partial, left, .. } => old
                .seek_relative(n_bytes as i64)
                .and_then(|()| partial.write_all(text.as_bytes()))
                .map(|()| *left -= n_bytes),
            Writer::Failed => Ok(()),
        };
        self.check(written)
    }

    /// Lets go of the files once a write has failed: half a result must not take the place of whole ones.
    fn check(&mut self, written: io::Result<()>) -> Result<()> {
        written.map_err(|error| {
            *self = Writer::Failed;
            failed(&error)
        })
    }

    /// Puts all in its place.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            Writer::Stdout(_) | Writer::Stream(_) | Writer::Append(_) | Writer::Failed => Ok(()),
            Writer::Replace { place, mut old, left, partial } => {
                place.put(&partial, &mut old, left).map_err(|error| failed(&error))
            }
        }
    }
}

fn n_bytes(blocks: &[Earlier]) -> u64 {
    blocks.iter().map(|block| block.n_bytes).sum()
}

/// Copies all of so many bytes.
fn copy(from: &mut impl Read, n_bytes: u64, mut to: &File) -> io::Result<()> {
    match io::copy(&mut from.take(n_bytes), &mut to)? {
        n if n == n_bytes => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Cuts a file off and goes to its end.
fn cut(mut file: &File, n_bytes: u64) -> io::Result<()> {
    file.set_len(n_bytes)?;
    file.seek(SeekFrom::End(0)).map(|_| ())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(refused(path, &error)),
        _ => Ok(()),
    }
}

/// Keeps a second run away. File systems without locks go without.
fn lock(file: &File, path: &Path) -> Result<()> {
    let others = || refused(path, &"another run is writing it");
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(others()),
        // A run that ended after this file was opened has put another in its place.
        _ if !is_at(file, path).map_err(|error| refused(path, &error))? => Err(others()),
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// Whether a path still leads to an open file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let there = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        there => there?,
    };
    let here = file.metadata()?;
    Ok((here.dev(), here.ino()) == (there.dev(), there.ino()))
}

/// Whether a path still leads to an open file; no stable way to ask is known here.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> io::Result<bool> {
    Ok(true)
}

fn refused(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::argument("output_file", format!("{path:?}: {error}"))
}

fn failed(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Error::ClosedPipe,
        _ => Error::Io { message: format!("output file: {error}") },
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_replaced_or_removed_before_it_was_locked_is_refused() {
        let place = tempfile::tempdir().expect("a directory");
        let [path, partial] = ["out.jsonl", "out.jsonl.partial"].map(|name| place.path().join(name));
        let open = || File::create(&path).expect("a file");
        lock(&open(), &path).expect("nobody else is there");
        let opened = open();
        File::create(&partial).and_then(|_| fs::rename(&partial, &path)).expect("replaced");
        let removed = open();
        let refused = |file: &File| lock(file, &path).expect_err("it is not the file at the path").to_string();
        assert!(refused(&opened).contains("another run is writing it"), "{}", refused(&opened));
        fs::remove_file(&path).expect("removed");
        assert!(refused(&removed).contains("another run is writing it"), "{}", refused(&removed));
    }
}
