//! Builds the runner: every module of the kernel table, exactly as NVRTC is given it, and the C++ of this directory.
//! Objects are kept under target/tmp by a hash of all that goes into them.

use proxytune::backend::cuda::kernels::{Kernel, MODULES, Module, headers};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// A compiler and what it checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Flavour {
    /// g++, optimised.
    Gcc,
    /// clang, not optimised.
    Clang,
    /// AddressSanitizer and UndefinedBehaviorSanitizer.
    Sanitized,
    /// g++'s calls of ThreadSanitizer, answered by race.cpp.
    Races,
    /// g++'s objects as a libcuda.so.1 in place of a process: libcuda.cpp.
    Driver,
}

impl Flavour {
    /// The compiler, its flags, and those of kernels alone: where much is checked, they take long to optimise.
    fn compiler(self) -> (&'static str, &'static [&'static str], &'static [&'static str]) {
        const SANITIZED: &[&str] =
            &["-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
        const RACES: &[&str] = &["-g1", "-fno-omit-frame-pointer", "-Wno-frame-address", "-fno-pie", "-DHOST_RACE"];
        match self {
            Flavour::Gcc | Flavour::Driver => ("g++", &["-fPIC"], &["-O2"]),
            Flavour::Clang => ("clang++", &[], &["-O0"]),
            Flavour::Sanitized => ("g++", SANITIZED, &["-O0"]),
            Flavour::Races => {
                ("g++", RACES, &["-O1", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"])
            }
        }
    }
}

const ALL_FLAGS: [&str; 5] = ["-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas"];

macro_rules! sources {
    ($($file:literal),*) => { [$(($file, include_str!($file))),*] };
}

const HEADERS: [(&str, &str); 6] = sources!["cuda_host.h", "block.h", "fibre.h", "memory.h", "race.h", "player.h"];
const PARTS: [(&str, &str); 3] = sources!["block.cpp", "fibre.cpp", "race.cpp"];
/// How requests come.
const ENTRIES: [(&str, &str); 2] = sources!["main.cpp", "libcuda.cpp"];

/// A program to build: some C++ of ours, and modules.
struct Program {
    /// File name, text, and whether it is a kernel's.
    sources: Vec<(String, String, bool)>,
    headers: BTreeMap<String, String>,
}

/// A module: its text as NVRTC is given it, and its kernels.
pub(crate) struct Source {
    pub(crate) stem: &'static str,
    pub(crate) kernels: &'static [Kernel],
    pub(crate) text: String,
}

/// The runner of all kernels of the backend.
pub(crate) fn runner(flavour: Flavour) -> PathBuf {
    runner_of(&MODULES, flavour)
}

/// The runner of some of them.
pub(crate) fn runner_of(modules: &[Module], flavour: Flavour) -> PathBuf {
    let source = |module: &Module| Source { stem: module.stem, kernels: module.kernels, text: module.source() };
    program(&modules.iter().map(source).collect::<Vec<_>>(), flavour)
}

/// A runner of these modules. One at a time: the others find it built, or need the processors.
pub(crate) fn program(modules: &[Source], flavour: Flavour) -> PathBuf {
    static BUILDS: Mutex<()> = Mutex::new(());
    let _one = BUILDS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    Program::of_modules(modules, flavour).build(flavour)
}

impl Program {
    fn of_modules(modules: &[Source], flavour: Flavour) -> Self {
        let mut headers: BTreeMap<String, String> =
            headers().into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
        headers.extend(HEADERS.map(|(name, text)| (name.to_owned(), text.to_owned())));
        let [process, library] = ENTRIES;
        let parts = PARTS.into_iter().chain([if flavour == Flavour::Driver { library } else { process }]);
        let mut sources: Vec<_> = parts.map(|(name, text)| (name.to_owned(), text.to_owned(), false)).collect();
        sources.extend(modules.iter().map(|module| (format!("{}.cpp", module.stem), wrapped(module), true)));
        let kernels: Vec<&Kernel> = modules.iter().flat_map(|module| module.kernels).collect();
        sources.push(("registry.cpp".into(), registry(&kernels), false));
        Self { sources, headers }
    }

    /// Compiles what is not there yet, two files at a time, and links it.
    fn build(&self, flavour: Flavour) -> PathBuf {
        let (compiler, flags, kernel_flags) = flavour.compiler();
        let version = Command::new(compiler).arg("--version").output().unwrap_or_else(|error| {
            panic!("{compiler}: {error}; scripts/test installs it, as does: apt-get install g++ clang")
        });
        let common = hash_of(&(&version.stdout, ALL_FLAGS, flags, &self.headers));
        let headers = directory(&format!("headers-{}", hash_of(&self.headers)));
        for (name, text) in &self.headers {
            write(&headers.join(name), text);
        }
        let objects = directory("objects");
        let jobs: Vec<_> = self
            .sources
            .iter()
            .map(|(name, text, is_kernel)| {
                let flags = [flags, if *is_kernel { kernel_flags } else { &["-O2"] }].concat();
                let object = objects.join(format!("{name}-{}.o", hash_of(&(&common, text, &flags))));
                (name, text, flags, object)
            })
            .collect();
        let next = Mutex::new(jobs.iter().filter(|job| !job.3.exists()));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let job = next.lock().expect("no compiler panics").next();
                        let Some((name, text, flags, object)) = job else { break };
                        let source = object.with_extension("cpp");
                        write(&source, &format!("#line 1 \"{name}\"\n{text}"));
                        let made = scratch(object);
                        run(
                            Command::new(compiler).args(ALL_FLAGS).args(flags).arg("-c").arg("-I").arg(&headers),
                            [&source, &made],
                        );
                        std::fs::rename(&made, object).expect("a directory of ours");
                    }
                });
            }
        });
        let objects_used: Vec<&PathBuf> = jobs.iter().map(|job| &job.3).collect();
        let (name, link_flags): (_, &[&str]) = match flavour {
            Flavour::Driver => ("libcuda.so.1", &["-shared"]),
            Flavour::Races => ("runner", &["-no-pie"]),
            Flavour::Gcc | Flavour::Clang | Flavour::Sanitized => ("runner", &[]),
        };
        let program = directory(&format!("{flavour:?}-{}", hash_of(&objects_used))).join(name);
        if !program.exists() {
            let made = scratch(&program);
            let mut command = Command::new(compiler);
            command.args(flags).args(link_flags).args(&objects_used[1..]);
            run(&mut command, [objects_used[0], &made]);
            std::fs::rename(&made, &program).expect("a directory of ours");
        }
        program
    }
}

fn run(command: &mut Command, [source, made]: [&Path; 2]) {
    let output = command.arg(source).arg("-o").arg(made).output().expect("the compiler was found");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{said}");
    if !said.is_empty() {
        println!("{said}");
    }
}

/// A module in a namespace of its own, and each kernel with what Rust has of it.
fn wrapped(Source { stem, kernels, text }: &Source) -> String {
    let mut wrapped =
        format!("#include \"block.h\"\n#include \"common.cuh\"\nnamespace {{\n#line 1 \"{stem}.cu\"\n{text}\n}}\n");
    for Kernel { name, threads, args, args_bytes, .. } in *kernels {
        let run = format!("[](const void* args) {{ {name}(*static_cast<const {args}*>(args)); }}");
        writeln!(wrapped, "extern const host::Kernel {name}_kernel = {{\"{name}\", {threads}, {args_bytes}, {run}}};")
            .expect("a String takes any text");
    }
    wrapped
}

fn registry(kernels: &[&Kernel]) -> String {
    let declared: String =
        kernels.iter().map(|kernel| format!("extern const host::Kernel {}_kernel;\n", kernel.name)).collect();
    let listed: String = kernels.iter().map(|kernel| format!("    &{}_kernel,\n", kernel.name)).collect();
    format!(
        "#include \"block.h\"\n{declared}namespace host {{\nextern const Kernel* const KERNELS[];\nextern const u32 \
         N_KERNELS;\nconst Kernel* const KERNELS[] = {{\n{listed}}};\nconst u32 N_KERNELS = {};\n}}\n",
        kernels.len()
    )
}

fn hash_of(value: &impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_host").join(name);
    std::fs::create_dir_all(&path).expect("target is writable");
    path
}

/// A name that no other process writes to.
fn scratch(path: &Path) -> PathBuf {
    let mut name = path.file_name().expect("a file").to_owned();
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

/// Writes a file that others may be reading.
fn write(path: &Path, text: &str) {
    let made = scratch(path);
    std::fs::write(&made, text).expect("target is writable");
    std::fs::rename(&made, path).expect("a directory of ours");
}

/// `extern "C" __global__ void __launch_bounds__(THREADS, ..) NAME(const ARGS args)`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) args: String,
    /// An expression.
    pub(crate) threads: String,
}

/// The headers of a module's text, which must all be written alike.
pub(crate) fn headers_of(text: &str) -> Vec<Header> {
    let header = |rest: &str| {
        let line = rest.split(['{', ';']).next().unwrap_or_default();
        let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        let parsed = words.strip_prefix("__global__ void __launch_bounds__(").and_then(|rest| {
            let (bounds, rest) = rest.split_once(") ")?;
            let (name, rest) = rest.split_once("(const ")?;
            let args = rest.strip_suffix(')')?.split(' ').next()?;
            let threads = bounds.split(',').next()?;
            Some(Header { name: name.into(), args: args.into(), threads: threads.into() })
        });
        parsed.unwrap_or_else(|| panic!("not as the headers of kernels are: {words}"))
    };
    text.split("extern \"C\"").skip(1).map(header).collect()
}
