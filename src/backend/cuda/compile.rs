//! From the text of the kernels to cubins: ready ones, those of the cache, or NVRTC's.

#[cfg(test)]
mod proof;

use super::cubins::{self, Cubin, Key};
use super::driver::nvrtc::{Nvrtc, Output, Text};
use super::kernels::{MODULES, Module, headers};
use super::search::{ADVICE, Places};
use crate::{Error, Result};
use std::ffi::CString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where the compiled kernels come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The file of NVRTC; absent: it is looked for.
    pub nvrtc: Option<PathBuf>,
    /// A directory of ready kernels, as `proxytune kernels` makes them; absent: `cubins` beside the program, if it is there.
    pub cubins: Option<PathBuf>,
    /// Where what NVRTC makes is kept; absent: the user's directory for such things.
    pub cache: Option<PathBuf>,
}

/// A version of CUDA: major, minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u32, pub(super) u32);

impl Version {
    /// Of a number such as 12090.
    pub(super) fn of_number(number: i32) -> Self {
        Version(number as u32 / 1000, number as u32 % 1000 / 10)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// What a cubin runs on: `Arch(90)` is sm_90.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arch(pub u32);

/// The first with asynchronous copies and tensor cores for bf16.
pub(super) const OLDEST: Arch = Arch(80);
/// The oldest NVRTC that is used.
const OLDEST_COMPILER: Version = Version(12, 0);

impl Arch {
    /// What its cubins run on, the best first: itself, and what came before within its generation.
    pub(super) fn compatible(self) -> impl Iterator<Item = Arch> {
        (self.0 / 10 * 10..=self.0).rev().map(Arch)
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.0)
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("sm_").and_then(|number| number.parse().ok());
        let arch = number.map(Arch).filter(|arch| arch.to_string() == text && *arch >= OLDEST);
        arch.ok_or_else(|| format!("{text:?} is not sm_80, sm_90 or another from {OLDEST} on"))
    }
}

/// The flags of the compiler. Multiplications and additions are joined only where the text says so: the bits do not depend on
/// the compiler.
fn options(arch: Arch) -> [String; 3] {
    [format!("--gpu-architecture={arch}"), "--std=c++17".into(), "--fmad=false".into()]
}

/// Names all that a cubin is made of, the compiler aside.
fn key(module: &Module, arch: Arch) -> Key {
    let mut all = Vec::new();
    let mut add = |part: &str| {
        all.extend((part.len() as u64).to_le_bytes());
        all.extend(part.as_bytes());
    };
    add(&module.source());
    headers().iter().for_each(|(name, text)| [name, text.as_str()].into_iter().for_each(&mut add));
    options(arch).iter().for_each(|option| add(option));
    cubins::sha256(&all)
}

/// NVRTC, and where it was found.
pub(super) struct Compiler {
    nvrtc: Nvrtc,
    file: PathBuf,
    headers: Vec<Text>,
}

impl Compiler {
    /// The NVRTC in `named`, or the first that is found of those that are of use: with a card and its driver's version, those
    /// that know the card, and whose cubins the driver runs (of its own and of earlier major versions).
    pub(super) fn find(named: Option<&Path>, card: Option<(Arch, Version)>) -> Result<Self, String> {
        if let Some(file) = named {
            return Self::load(file, card).map_err(|error| format!("nvrtc: {error}"));
        }
        let mut refused = Vec::new();
        for file in Places::of_process().candidates() {
            match (Nvrtc::load(&file), file.components().count()) {
                // A bare name that the loader does not know is no finding.
                (Err(_), 1) => {}
                (Err(error), _) => refused.push(format!("; {}: {error}", file.display())),
                (Ok(nvrtc), _) => match Self::of(nvrtc, &file, card) {
                    Ok(compiler) => return Ok(compiler),
                    Err(error) => refused.push(format!("; {error}")),
                },
            }
        }
        Err(format!(
            "NVRTC, CUDA's compiler, is not here: looked for {}{}; {ADVICE}",
            Places::describe(),
            refused.concat()
        ))
    }

    fn load(file: &Path, card: Option<(Arch, Version)>) -> Result<Self, String> {
        Self::of(Nvrtc::load(file).map_err(|error| format!("{}: {error}", file.display()))?, file, card)
    }

    fn of(nvrtc: Nvrtc, file: &Path, card: Option<(Arch, Version)>) -> Result<Self, String> {
        let version = nvrtc.version();
        let headers = headers().into_iter().map(|(name, text)| Text::new(name, text)).collect();
        let compiler = Self { nvrtc, file: file.into(), headers };
        if version < OLDEST_COMPILER {
            return Err(format!("{} is NVRTC {version}; {OLDEST_COMPILER} is the oldest that is used", file.display()));
        }
        match card {
            Some((_, driver)) if driver.0 < version.0 => Err(format!(
                "{} is NVRTC {version}, whose kernels the driver cannot run (it has CUDA {driver})",
                file.display()
            )),
            Some((card, _)) if compiler.best_for(card).is_none() => {
                Err(format!("{} is NVRTC {version}, which does not know {card}; a newer one does", file.display()))
            }
            _ => Ok(compiler),
        }
    }

    /// What it compiles for, to run on `card`.
    fn best_for(&self, card: Arch) -> Option<Arch> {
        card.compatible().find(|&arch| arch >= OLDEST && self.knows(arch))
    }

    fn version(&self) -> Version {
        self.nvrtc.version()
    }

    /// `NVRTC 12.9, libnvrtc.so.12`: its file, or a bare name where the system's loader knows it.
    pub(super) fn describe(&self) -> String {
        format!("NVRTC {}, {}", self.version(), self.file.display())
    }

    fn knows(&self, arch: Arch) -> bool {
        self.nvrtc.architectures().contains(&arch)
    }

    fn compile(&self, module: &Module, arch: Arch) -> Result<Cubin> {
        let made = self.run(module, &options(arch));
        let refused = |log| {
            Error::device(
                "cuda",
                format!("NVRTC {} does not compile {} for {arch}: {log}", self.version(), module.stem),
            )
        };
        Ok(Cubin { image: made.map_err(refused)?.cubin, compiler: self.version() })
    }

    fn run(&self, module: &Module, options: &[String]) -> Result<Output, String> {
        let source = Text::new(&format!("{}.cu", module.stem), module.source());
        let options: Vec<_> = options.iter().map(|option| CString::new(&option[..]).expect("no zero byte")).collect();
        self.nvrtc.compile(&source, &self.headers, &options)
    }

    /// From the cache, or compiled and put there. A cache that cannot be written costs time at the next start, nothing else.
    fn cached(&self, module: &Module, arch: Arch, cache: Option<&Path>) -> Result<Cubin> {
        let key = key(module, arch);
        let file = cache.map(|cache| cache.join(cubins::cached_name(module.stem, arch, self.version(), &key)));
        let found =
            file.as_deref().and_then(|file| cubins::read(file, &key)).filter(|found| found.compiler == self.version());
        if let Some(found) = found {
            return Ok(found);
        }
        let cubin = self.compile(module, arch)?;
        if let (Some(file), Some(cache)) = (file, cache) {
            let _ = std::fs::create_dir_all(cache).and_then(|()| cubins::write(&file, &key, &cubin));
        }
        Ok(cubin)
    }

    /// What [`MODULES`] come to for `arch`, in their order, made by `make`, several at a time.
    fn each(&self, arch: Arch, make: impl Fn(&Module, Arch) -> Result<Cubin> + Sync) -> Result<Vec<Cubin>> {
        let (next, made) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let work = || {
            while let Some((index, module)) = MODULES.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed)) {
                let cubin = make(module, arch);
                made.lock().expect("no one panics with it").push((index, cubin));
            }
        };
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from).min(MODULES.len());
        std::thread::scope(|scope| (0..n_threads).for_each(|_| drop(scope.spawn(work))));
        let mut made = made.into_inner().expect("no one panics with it");
        made.sort_by_key(|(index, _)| *index);
        made.into_iter().map(|(_, cubin)| cubin).collect()
    }
}

/// How the kernels of a card can be had.
pub(super) enum Kernels {
    /// They are ready, for this card or an earlier one of its generation.
    Ready { directory: PathBuf, cubins: Vec<Cubin> },
    /// By a compiler, where they are not in the cache.
    Compiled { compiler: Compiler, arch: Arch, cache: Option<PathBuf> },
}

impl Kernels {
    /// For a card and its driver: a ready one before a compiler. The error is for a person.
    pub(super) fn find(sources: &Sources, card: Arch, driver: Version) -> Result<Self, String> {
        let mut unfit = String::new();
        if let Some(directory) = directory_of_ready(sources) {
            let why = match card.compatible().find_map(|arch| ready(&directory, arch)) {
                Some(cubins) if cubins.iter().all(|cubin| cubin.compiler.0 <= driver.0) => {
                    return Ok(Kernels::Ready { directory, cubins });
                }
                Some(_) => format!("has kernels of a later CUDA than the driver's, which is {driver}"),
                None => {
                    format!("has no kernels of this version of proxytune for {card}; `proxytune kernels` makes them")
                }
            };
            unfit = format!("{} {why}", directory.display());
            if sources.cubins.is_some() {
                return Err(unfit);
            }
            unfit.push_str("; ");
        }
        let found = Compiler::find(sources.nvrtc.as_deref(), Some((card, driver)));
        let compiler = found.map_err(|error| unfit + &error)?;
        let arch = compiler.best_for(card).expect("it was looked for by what it knows");
        make_cache(sources)?;
        Ok(Kernels::Compiled { compiler, arch, cache: sources.cache.clone().or_else(cubins::default_cache) })
    }

    /// `ready in DIR`, `NVRTC 12.9, libnvrtc.so.12`.
    pub(super) fn describe(&self) -> String {
        match self {
            Kernels::Ready { directory, .. } => format!("ready in {}", directory.display()),
            Kernels::Compiled { compiler, .. } => compiler.describe(),
        }
    }

    /// The cubins of [`MODULES`], in their order.
    pub(super) fn cubins(self) -> Result<Vec<Cubin>> {
        match self {
            Kernels::Ready { cubins, .. } => Ok(cubins),
            Kernels::Compiled { compiler, arch, cache } => {
                compiler.each(arch, |module, arch| compiler.cached(module, arch, cache.as_deref()))
            }
        }
    }
}

/// Where ready kernels are looked for.
fn directory_of_ready(sources: &Sources) -> Option<PathBuf> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("cubins")).filter(|directory| directory.is_dir());
    sources.cubins.clone().or_else(beside)
}

/// All modules for `arch` from a directory of ready ones.
fn ready(directory: &Path, arch: Arch) -> Option<Vec<Cubin>> {
    let read =
        |module: &Module| cubins::read(&directory.join(cubins::file_name(module.stem, arch)), &key(module, arch));
    MODULES.iter().map(read).collect()
}

/// What is missing to have kernels, where no card says which: a sentence, or nothing.
pub(super) fn missing(sources: &Sources) -> Option<String> {
    if let Err(error) = make_cache(sources) {
        return Some(error);
    }
    match directory_of_ready(sources) {
        Some(directory) if !directory.is_dir() => Some(format!("{}: there is no such directory", directory.display())),
        Some(_) => None,
        None => Compiler::find(sources.nvrtc.as_deref(), None).err(),
    }
}

/// A cache that was named must be there; the default one only saves time.
fn make_cache(sources: &Sources) -> Result<(), String> {
    let make =
        |cache: &PathBuf| std::fs::create_dir_all(cache).map_err(|error| format!("{}: {error}", cache.display()));
    sources.cache.as_ref().map_or(Ok(()), make)
}

/// A file that [`write()`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The file.
    pub file: PathBuf,
    /// Its size.
    pub bytes: usize,
}

/// Compiles every module for each of `archs` into `directory`, which is made if it is not there. Needs no card.
pub fn write(
    nvrtc: Option<&Path>,
    archs: &[Arch],
    directory: &Path,
    written: &mut dyn FnMut(&Written) -> Result<()>,
) -> Result<()> {
    let compiler = Compiler::find(nvrtc, None).map_err(|error| Error::device("cuda", error))?;
    if let Some(arch) = archs.iter().find(|arch| !compiler.knows(**arch)) {
        let known: Vec<String> = compiler.nvrtc.architectures().iter().map(Arch::to_string).collect();
        let message = format!("NVRTC {} does not know {arch}; it knows {}", compiler.version(), known.join(", "));
        return Err(Error::argument("arch", message));
    }
    std::fs::create_dir_all(directory)
        .map_err(|error| Error::Io { message: format!("{}: {error}", directory.display()) })?;
    for &arch in archs {
        let made = compiler.each(arch, |module, arch| compiler.compile(module, arch))?;
        for (module, cubin) in MODULES.iter().zip(&made) {
            let file = directory.join(cubins::file_name(module.stem, arch));
            cubins::write(&file, &key(module, arch), cubin)
                .map_err(|error| Error::Io { message: format!("{}: {error}", file.display()) })?;
            written(&Written { file, bytes: cubin.image.len() })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_are_read_and_ordered() {
        for (text, arch) in [("sm_80", Some(80)), ("sm_90", Some(90)), ("sm_120", Some(120)), ("sm_75", None)] {
            assert_eq!(text.parse().ok(), arch.map(Arch), "{text}");
        }
        for text in ["", "90", "sm_", "sm_90a", "sm_090", "SM_90", "sm_-90", "sm_90 ", "compute_90"] {
            assert!(text.parse::<Arch>().is_err(), "{text:?}");
        }
        assert_eq!(Arch(86).compatible().collect::<Vec<_>>(), [86, 85, 84, 83, 82, 81, 80].map(Arch));
        assert_eq!(Arch(120).compatible().collect::<Vec<_>>(), [Arch(120)]);
        assert_eq!(Version::of_number(12090), Version(12, 9));
    }

    /// What is found for a card in a directory of ready kernels, or why nothing is.
    #[test]
    fn ready_kernels_are_those_of_this_text_for_this_generation_and_driver() {
        let directory = tempfile::tempdir().expect("a directory");
        let sources = Sources { cubins: Some(directory.path().into()), ..Sources::default() };
        let find = |card, driver| match Kernels::find(&sources, Arch(card), driver) {
            Ok(Kernels::Ready { cubins, .. }) => Ok(cubins.len()),
            Ok(Kernels::Compiled { .. }) => panic!("a directory that is named is taken or refused"),
            Err(error) => Err(error),
        };
        let (older, newer) = (Version(12, 2), Version(13, 0));
        let none = find(86, newer).expect_err("nothing is there");
        assert!(none.contains("has no kernels of this version of proxytune for sm_86"), "{none}");

        let write = |arch: Arch, compiler| {
            for module in &MODULES {
                let file = directory.path().join(cubins::file_name(module.stem, arch));
                let cubin = Cubin { image: module.stem.into(), compiler };
                cubins::write(&file, &key(module, arch), &cubin).expect("written");
            }
        };
        write(Arch(80), Version(12, 9));
        // An earlier one of the generation; minor versions of a driver are all alike.
        assert_eq!(find(86, older), Ok(MODULES.len()));
        assert!(find(90, older).is_err(), "another generation");
        write(Arch(86), Version(13, 5));
        let refused = find(86, older).expect_err("the compiler is newer than the driver");
        assert!(refused.contains("has kernels of a later CUDA than the driver's, which is 12.2"), "{refused}");
        assert_eq!((find(86, newer), find(80, older)), (Ok(MODULES.len()), Ok(MODULES.len())));
        // Of another text: as after an update of the program.
        let file = directory.path().join(cubins::file_name(MODULES[3].stem, Arch(80)));
        cubins::write(&file, &[0; 32], &Cubin { image: vec![1], compiler: older }).expect("written");
        assert!(find(80, older).is_err());
    }

    #[test]
    fn a_key_names_module_and_architecture() {
        let keys: Vec<_> = MODULES.iter().flat_map(|module| [80, 90].map(|arch| key(module, Arch(arch)))).collect();
        let different: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
        assert_eq!(key(&MODULES[0], Arch(80)), keys[0]);
    }
}
