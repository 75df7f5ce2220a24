//! Where NVRTC may be: where the loader looks, in CUDA's own directories, and in what pip and conda install.

use std::fs;
use std::path::{Path, PathBuf};

/// Names of the library, the newest first: a driver takes what compilers of its own and of earlier major versions make.
#[cfg(not(windows))]
const FILES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
#[cfg(windows)]
const FILES: [&str; 2] = ["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];

/// Where the wheels of NVIDIA have it, below site-packages: those of 13.x and of 12.x.
#[cfg(not(windows))]
const WHEELS: [&str; 2] = ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"];
#[cfg(windows)]
const WHEELS: [&str; 2] = ["nvidia/cu13/bin/x86_64", "nvidia/cuda_nvrtc/bin"];

/// What a person can do where there is none.
pub(super) const ADVICE: &str =
    "`pip install nvidia-cuda-nvrtc-cu12` brings it; --nvrtc PATH names a file; --cubins DIR one of ready kernels";

/// Where things are installed.
pub(super) struct Places {
    /// What may have a Python below it: `lib/python3.11/site-packages`. The most deliberate first.
    prefixes: Vec<PathBuf>,
    /// What may be a CUDA toolkit.
    toolkits: Vec<PathBuf>,
}

impl Places {
    /// As the environment of this process has it.
    pub(super) fn of_process() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let named = |names: [&str; 2]| names.into_iter().filter_map(variable).map(PathBuf::from).collect::<Vec<_>>();
        let (mut prefixes, mut toolkits) = (named(["VIRTUAL_ENV", "CONDA_PREFIX"]), named(["CUDA_HOME", "CUDA_PATH"]));
        let path = variable("PATH").unwrap_or_default();
        prefixes.extend(std::env::split_paths(&path).filter_map(|bin| Some(bin.parent()?.to_path_buf())));
        prefixes.extend(std::env::home_dir().map(|home| home.join(".local")));
        if cfg!(unix) {
            prefixes.extend(["/usr/local", "/usr"].map(PathBuf::from));
            toolkits.push("/usr/local/cuda".into());
        }
        Self { prefixes, toolkits }
    }

    /// Every directory that may hold the library; those that do not exist too.
    fn directories(&self) -> Vec<PathBuf> {
        let wheels =
            |prefix: &PathBuf| site_packages(prefix).into_iter().flat_map(|site| WHEELS.map(|wheel| site.join(wheel)));
        let below = |root: &PathBuf| ["lib64", "lib", "bin"].map(|lib| root.join(lib));
        // Of conda's own packages it is in the lib of the prefix.
        let libraries = self.toolkits.iter().chain(&self.prefixes).flat_map(below);
        let mut directories = Vec::new();
        for directory in self.prefixes.iter().flat_map(wheels).chain(libraries) {
            if !directories.contains(&directory) {
                directories.push(directory);
            }
        }
        directories
    }

    /// What to load, in this order: bare names for the system's loader, then files that are there.
    pub(super) fn candidates(&self) -> Vec<PathBuf> {
        let files = self.directories().into_iter().flat_map(|directory| FILES.map(|file| directory.join(file)));
        FILES.iter().map(PathBuf::from).chain(files.filter(|file| file.is_file())).collect()
    }

    /// What was looked for, for a person.
    pub(super) fn describe() -> String {
        format!(
            "{} where the loader looks, in {} of the Pythons on PATH, VIRTUAL_ENV, CONDA_PREFIX and ~/.local, and in \
             CUDA_HOME, CUDA_PATH and /usr/local/cuda",
            FILES.join(", "),
            WHEELS.join(" and ")
        )
    }
}

/// The directories of packages of each Python below a prefix; Debian calls its own dist-packages.
fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    if cfg!(windows) {
        return vec![prefix.join("Lib").join("site-packages")];
    }
    let entries = fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten();
    let is_python = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.starts_with("python3"));
    let mut pythons: Vec<PathBuf> = entries.filter(is_python).map(|entry| entry.path()).collect();
    pythons.sort();
    pythons.iter().flat_map(|python| ["site-packages", "dist-packages"].map(|kind| python.join(kind))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: PathBuf) -> PathBuf {
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(&path, "").expect("written");
        path
    }

    /// A place of the library for each kind of installation, in the order in which they are taken.
    #[test]
    #[cfg(not(windows))]
    fn every_kind_of_installation_is_found_in_order() {
        let root = tempfile::tempdir().expect("a directory");
        let at = |path: &str| root.path().join(path);
        let places = Places {
            prefixes: ["venv", "conda", "pyenv", "venv", "none", "home/.local"].map(at).to_vec(),
            toolkits: vec![at("cuda")],
        };
        assert_eq!(places.candidates().len(), FILES.len(), "nothing but bare names");
        let files = [
            "venv/lib/python3.11/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "venv/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "conda/lib/python3.13/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "pyenv/lib/python3.9/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "home/.local/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "cuda/lib64/libnvrtc.so",
            "conda/lib/libnvrtc.so.12",
        ];
        let expected: Vec<_> = files.iter().map(|file| touch(at(file))).collect();
        let others = [
            "venv/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.alt.so.12",
            "venv/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.12.9",
            "venv/lib/ruby/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
        ];
        others.iter().for_each(|file| drop(touch(at(file))));
        assert_eq!(places.candidates()[FILES.len()..], expected);
    }
}
