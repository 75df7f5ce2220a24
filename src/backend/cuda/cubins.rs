//! Compiled kernels as files: the cubin of a module, and after it a seal that says what it was made of. Tools that read
//! cubins read these.
//!
//! `proxytune kernels` makes a directory of them that needs no NVRTC; the cache is another. Whatever is not whole, or not
//! what is asked for, is as good as not there.

use super::compile::{Arch, Version};
use bytemuck::{Pod, Zeroable};
use ring::digest::{SHA256, digest};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// SHA-256 of what a cubin is made of, the compiler aside: see [`super::compile::key`].
pub(super) type Key = [u8; 32];

/// A cubin and what made it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cubin {
    /// An ELF image.
    pub(super) image: Vec<u8>,
    /// NVRTC's.
    pub(super) compiler: Version,
}

const MAGIC: [u8; 16] = *b"proxytune cubin\n";

/// The last bytes of a file.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Seal {
    key: Key,
    /// SHA-256 of the image.
    content: [u8; 32],
    /// Of the image, little-endian.
    n_bytes: [u8; 8],
    /// Major and minor, little-endian.
    compiler: [[u8; 4]; 2],
    magic: [u8; 16],
}

impl Seal {
    fn of(key: &Key, cubin: &Cubin) -> Self {
        let Version(major, minor) = cubin.compiler;
        Self {
            key: *key,
            content: sha256(&cubin.image),
            n_bytes: (cubin.image.len() as u64).to_le_bytes(),
            compiler: [major, minor].map(u32::to_le_bytes),
            magic: MAGIC,
        }
    }
}

/// The name of a module's file in a directory of ready kernels.
pub(super) fn file_name(stem: &str, arch: Arch) -> String {
    format!("{stem}.{arch}.cubin")
}

/// The name of a module's file in the cache, where those of other versions stand beside it.
pub(super) fn cached_name(stem: &str, arch: Arch, compiler: Version, key: &Key) -> String {
    let key: String = key[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{stem}.{arch}.nvrtc-{compiler}.{key}.cubin")
}

/// The cubin in `file`, if it is whole and made of what `key` names.
pub(super) fn read(file: &Path, key: &Key) -> Option<Cubin> {
    let mut image = fs::read(file).ok()?;
    let end = image.len().checked_sub(size_of::<Seal>())?;
    let seal: Seal = bytemuck::pod_read_unaligned(&image.split_off(end));
    let [major, minor] = seal.compiler.map(u32::from_le_bytes);
    let cubin = Cubin { image, compiler: Version(major, minor) };
    (bytemuck::bytes_of(&seal) == bytemuck::bytes_of(&Seal::of(key, &cubin))).then_some(cubin)
}

/// Who began to write a file so long ago was killed at it.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Writes a cubin so that nobody finds half of it, however many processes write the same one. What processes that were
/// killed at that left in the directory is removed.
pub(super) fn write(file: &Path, key: &Key, cubin: &Cubin) -> io::Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let new = PathBuf::from(name);
    file.parent().into_iter().for_each(remove_abandoned);
    let bytes = [&cubin.image, bytemuck::bytes_of(&Seal::of(key, cubin))].concat();
    let written = fs::write(&new, bytes).and_then(|()| fs::rename(&new, file));
    if written.is_err() {
        // Nothing to do about a file that cannot be removed either.
        let _ = fs::remove_file(&new);
    }
    written
}

/// Removes what [`write`] did not get to rename. What cannot be looked at or removed stays.
fn remove_abandoned(directory: &Path) {
    let is_abandoned = |entry: &fs::DirEntry| {
        let age = entry.metadata().ok().and_then(|entry| entry.modified().ok()?.elapsed().ok());
        is_unfinished(&entry.file_name().to_string_lossy()) && age.is_some_and(|age| age > ABANDONED)
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(is_abandoned).for_each(|entry| drop(fs::remove_file(entry.path())));
}

/// Whether a file is called `NAME.cubin.PROCESS-COUNT.tmp`, as [`write`] calls them.
fn is_unfinished(name: &str) -> bool {
    let numbers = name.strip_suffix(".tmp").and_then(|name| name.rsplit_once(".cubin.")?.1.split_once('-'));
    numbers.is_some_and(|(process, count)| [process, count].iter().all(|number| number.parse::<u32>().is_ok()))
}

/// Where compiled kernels are kept unless the user says otherwise; absent where there is no home.
pub(super) fn default_cache() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = std::env::home_dir().filter(|home| home.is_absolute());
    let cache = if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        home.map(|home| home.join("Library").join("Caches"))
    } else {
        variable("XDG_CACHE_HOME").or_else(|| Some(home?.join(".cache")))
    };
    Some(cache?.join("proxytune").join("kernels"))
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::time::SystemTime;

    fn cubin(image: &[u8]) -> Cubin {
        Cubin { image: image.to_vec(), compiler: Version(12, 9) }
    }

    #[test]
    fn what_is_not_whole_or_not_what_is_asked_for_is_not_there() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join(file_name("embed", Arch(90)));
        let (key, other) = ([7; 32], [8; 32]);
        assert_eq!(read(&file, &key), None, "no file");
        write(&file, &key, &cubin(b"an image")).expect("written");
        assert_eq!(read(&file, &key), Some(cubin(b"an image")));
        assert_eq!(read(&file, &other), None, "made of something else");
        let whole = fs::read(&file).expect("read");
        // Every bit counts but those of the compiler's version, which are compared where they matter.
        let version = whole.len() - 24..whole.len() - 16;
        for at in (0..whole.len()).filter(|at| !version.contains(at)) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&file, bytes).expect("written");
            assert_eq!(read(&file, &key), None, "byte {at}");
        }
        let longer = [&whole[..], b"\n"].concat();
        for bytes in (0..whole.len()).map(|n| &whole[..n]).chain([&longer[..], &whole[1..]]) {
            fs::write(&file, bytes).expect("written");
            assert_eq!(read(&file, &key), None, "{} bytes of {}", bytes.len(), whole.len());
        }
        write(&file, &key, &cubin(b"")).expect("written over what is broken");
        assert_eq!(read(&file, &key), Some(cubin(b"")));
    }

    #[test]
    fn many_may_write_the_same_file_while_others_read_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let (file, key) = (directory.path().join("x.cubin"), [1; 32]);
        let images = [vec![1u8; 100_000], vec![2u8; 70_000], vec![3u8; 1]];
        write(&file, &key, &cubin(&images[0])).expect("written");
        std::thread::scope(|scope| {
            for image in &images {
                let (file, key) = (&file, &key);
                scope.spawn(move || (0..50).for_each(|_| write(file, key, &cubin(image)).expect("written")));
            }
            for _ in 0..200 {
                let found = read(&file, &key).expect("there is always a whole one");
                assert!(images.contains(&found.image));
            }
        });
        assert_eq!(fs::read_dir(&directory).expect("read").count(), 1, "nothing else is left behind");
    }

    #[test]
    fn what_killed_writers_left_is_removed_after_an_hour() {
        let directory = tempfile::tempdir().expect("a directory");
        let put = |name: &str, minutes: u64| {
            let file = fs::File::create(directory.path().join(name)).expect("made");
            file.set_modified(SystemTime::now() - Duration::from_secs(60 * minutes)).expect("it is mine");
        };
        let kept = ["a.cubin.12-0.tmp", "b.cubin", "c.cubin.12.tmp", "c.cubin.x-1.tmp", "notes.12-0.tmp", "c.12-0.tmp"];
        put(kept[0], 58);
        kept[1..].iter().for_each(|name| put(name, 100_000));
        put("a.cubin.7-3.tmp", 62);
        put("other.sm_90.nvrtc-12.9.00ff.cubin.4294967295-11.tmp", 100_000);
        // Of a clock that was set back since.
        let ahead = fs::File::create(directory.path().join("d.cubin.1-1.tmp")).expect("made");
        ahead.set_modified(SystemTime::now() + Duration::from_secs(7200)).expect("it is mine");
        write(&directory.path().join("new.cubin"), &[1; 32], &cubin(b"x")).expect("written");
        let entries = fs::read_dir(&directory).expect("read").map(|entry| entry.expect("an entry").file_name());
        let left: BTreeSet<_> = entries.map(|name| name.into_string().expect("UTF-8")).collect();
        let expected = kept.iter().chain(&["d.cubin.1-1.tmp", "new.cubin"]).map(|name| name.to_string());
        assert_eq!(left, expected.collect());
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(write(&directory.path().join("none/x.cubin"), &[1; 32], &cubin(b"x")).is_err());
        assert_eq!(fs::read_dir(&directory).expect("read").count(), 0);
    }
}
