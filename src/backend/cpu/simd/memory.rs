//! Memory for weights and buffers in large pages, one behind the other.
//!
//! At the end of a page of 4 KiB the processor stops fetching ahead, and each page's address is looked up in tables of a
//! virtual machine: 31 GB/s for two threads, 24 for one, where pages of 2 MiB give 35 and 34.

use super::LINE;
use bytemuck::Pod;
use memmap2::{MmapMut, MmapRaw};
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Bytes that are mapped at a time for what is small; what is not touched takes no memory on Linux.
const SHARED_BYTES: usize = 64 << 20;
/// From here on a region has a mapping of its own, so that little of a shared one is left over.
const LARGE_BYTES: usize = SHARED_BYTES / 4;

/// Gives out memory: regions begin on cache lines.
#[derive(Default)]
pub(in super::super) struct Arena {
    /// The mapping that small regions share now.
    mapping: Option<Arc<MmapRaw>>,
    n_used: usize,
}

/// Elements of its own.
pub(in super::super) struct Region<T> {
    first: *mut T,
    len: usize,
    /// Held, not used.
    _mapping: Arc<MmapRaw>,
}

// SAFETY: it owns its elements, as a vector does.
unsafe impl<T: Send> Send for Region<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Region<T> {}

impl Arena {
    /// `len` elements, all zero, which the system provides as they are first touched.
    pub(in super::super) fn zeroed<T: Pod>(&mut self, len: usize) -> io::Result<Region<T>> {
        let too_many = || io::Error::from(io::ErrorKind::OutOfMemory);
        let n_bytes = len.checked_mul(size_of::<T>()).and_then(|n| n.checked_next_multiple_of(LINE));
        let n_bytes = n_bytes.ok_or_else(too_many)?;
        assert!(align_of::<T>() <= LINE);
        let (mapping, offset) = if n_bytes >= LARGE_BYTES { (mapped(n_bytes)?, 0) } else { self.small(n_bytes)? };
        // SAFETY: `n_bytes` from here on are inside the mapping.
        let first = unsafe { mapping.as_mut_ptr().add(offset) }.cast();
        Ok(Region { first, len, _mapping: mapping })
    }

    /// The shared mapping, and where in it `n_bytes` are free.
    fn small(&mut self, n_bytes: usize) -> io::Result<(Arc<MmapRaw>, usize)> {
        let has_room = |mapping: &&Arc<MmapRaw>| mapping.len() - self.n_used >= n_bytes;
        let mapping = match self.mapping.as_ref().filter(has_room) {
            Some(mapping) => mapping.clone(),
            None => {
                self.n_used = 0;
                self.mapping.insert(mapped(SHARED_BYTES)?).clone()
            }
        };
        self.n_used += n_bytes;
        Ok((mapping, self.n_used - n_bytes))
    }
}

/// Zeroed memory, which nothing refers to but the regions that are made of it.
fn mapped(n_bytes: usize) -> io::Result<Arc<MmapRaw>> {
    let mapping = MmapRaw::from(MmapMut::map_anon(n_bytes)?);
    // A wish: a kernel without large pages says no, and gives small ones.
    #[cfg(target_os = "linux")]
    let _ = mapping.advise(memmap2::Advice::HugePage);
    Ok(Arc::new(mapping))
}

impl<T> Deref for Region<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `zeroed` gave these elements of a plain type to this region alone; they are inside a mapping that it
        // holds, and begin on a cache line.
        unsafe { std::slice::from_raw_parts(self.first, self.len) }
    }
}

impl<T> DerefMut for Region<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_zeroed_and_apart() {
        let mut arena = Arena::default();
        let small = LARGE_BYTES / 2 - LINE;
        let lens = [1, 100, 0, small, LARGE_BYTES / 2, 4096, SHARED_BYTES, 7].into_iter().chain([small; 8]);
        let mut regions: Vec<Region<u16>> = Vec::new();
        for (index, len) in lens.enumerate() {
            let mut region: Region<u16> = arena.zeroed(len).expect("memory");
            assert!(region.len() == len && region.as_ptr().addr().is_multiple_of(LINE));
            assert!(region.iter().all(|&element| element == 0));
            region.fill(1 + index as u16);
            regions.push(region);
        }
        drop(arena);
        for (index, region) in regions.iter().enumerate() {
            assert!(region.iter().all(|&element| element == 1 + index as u16), "region {index}");
        }
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(Arena::default().zeroed::<u64>(usize::MAX / 4).is_err());
        assert!(Arena::default().zeroed::<u64>(usize::MAX / 16).is_err());
    }
}
