//! Where the results of a batch go.
//!
//! A file that an earlier run left is appended to where all that is new comes last. Where lines between finished ones
//! run again, the results are written to `OUT.partial` beside it, in order, the finished ones copied as their turn
//! comes; at the end, and on Ctrl-C, that takes the place of the file in one rename. After a crash both are there, and
//! the next run joins them first: at no time is a finished line in neither.

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
    Old { place: Place, file: File, overwrite: bool },
}

/// A file and what may stand beside it.
pub(super) struct Place {
    path: PathBuf,
    partial: PathBuf,
}

impl Target {
    /// Looks where `-o` points. Whatever would hinder the writing later is refused here, before models are opened.
    pub(super) fn open(input: &Path, output: Option<&Path>, overwrite: bool) -> Result<Self> {
        let Some(path) = output.filter(|path| path.as_os_str() != "-") else { return Ok(Target::Stream(None)) };
        let refuse = |error: io::Error| refused(path, &error);
        let is_input = |other: &Path| {
            let both = input.canonicalize().ok().zip(other.canonicalize().ok());
            both.is_some_and(|(input, other)| input == other)
        };
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let place = Place::new(path.into());
                if is_input(&place.partial) || place.partial.exists() && !overwrite {
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
                lock(&file, path)?;
                Ok(Target::Old { place, file, overwrite })
            }
        }
    }

    /// The results of an earlier run, checked against the input. Two halves that a crash has left are joined.
    pub(super) fn earlier(&mut self, input: &mut Input, parser: &Parser) -> Result<Vec<Earlier>> {
        let Target::Old { place, file, overwrite: false } = self else { return Ok(Vec::new()) };
        let mut found = earlier::walk(file, &place.path, input, parser)?;
        let partial = match OpenOptions::new().read(true).write(true).open(&place.partial) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            partial => partial.map_err(|error| refused(&place.partial, &error))?,
        };
        let mut joined = earlier::walk(&partial, &place.partial, input, parser)?;
        lock(&partial, &place.partial)?;
        let rest = found.split_off(joined.len().min(found.len()));
        let mut join = || {
            cut(&partial, n_bytes(&joined))?;
            file.seek(SeekFrom::Start(n_bytes(&found)))?;
            place.put(&partial, &mut (&*file).take(n_bytes(&rest)))
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
                file.map(Writer::Append).map_err(|error| refused(&path, &error))
            }
            Target::New(place) => {
                remove(&place.partial)?;
                let file = File::create_new(&place.path).map_err(|error| refused(&place.path, &error))?;
                lock(&file, &place.path)?;
                Ok(Writer::Append(file))
            }
            Target::Old { place, mut file, overwrite } => {
                if overwrite {
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

    /// Ends the partial file with the rest of the old one, and lets it take that one's place.
    fn put(&self, mut partial: &File, rest: &mut impl Read) -> io::Result<()> {
        io::copy(rest, &mut partial)?;
        partial.sync_all()?;
        fs::rename(&self.partial, &self.path)
    }
}

/// Takes results in the order of the input.
pub(super) enum Writer {
    Stdout(Stdout),
    Append(File),
    Replace {
        place: Place,
        old: BufReader<File>,
        /// Bytes of results in the old file that are neither kept nor replaced yet.
        left: u64,
        partial: File,
    },
}

impl Writer {
    pub(super) fn is_a_file(&self) -> bool {
        !matches!(self, Writer::Stdout(_))
    }

    /// Keeps the next bytes of the earlier results.
    pub(super) fn keep(&mut self, n_bytes: u64) -> Result<()> {
        match self {
            Writer::Stdout(_) | Writer::Append(_) => Ok(()),
            Writer::Replace { old, partial, left, .. } => {
                *left -= n_bytes;
                io::copy(&mut old.take(n_bytes), partial).map(|_| ()).map_err(|error| failed(&error))
            }
        }
    }

    /// Writes whole lines in place of the next bytes of the earlier results.
    pub(super) fn replace(&mut self, n_bytes: u64, text: &str) -> Result<()> {
        let written = match self {
            Writer::Stdout(out) => return out.text(text),
            Writer::Append(file) => file.write_all(text.as_bytes()),
            Writer::Replace { old, partial, left, .. } => {
                *left -= n_bytes;
                old.seek_relative(n_bytes as i64).and_then(|()| partial.write_all(text.as_bytes()))
            }
        };
        written.map_err(|error| failed(&error))
    }

    /// Puts all in its place.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            Writer::Stdout(_) | Writer::Append(_) => Ok(()),
            Writer::Replace { place, old, left, partial } => {
                place.put(&partial, &mut old.take(left)).map_err(|error| failed(&error))
            }
        }
    }
}

fn n_bytes(blocks: &[Earlier]) -> u64 {
    blocks.iter().map(|block| block.n_bytes).sum()
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
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(refused(path, &"another run is writing it")),
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
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
