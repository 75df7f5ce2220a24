//! Memory for weights and buffers in large pages, one behind the other.
//!
//! At the end of a page of 4 KiB the processor stops fetching ahead, and each page's address is looked up in tables of a
//! virtual machine: 31 GB/s for two threads, 24 for one, where pages of 2 MiB give 35 and 34.

use super::LINE;
use bytemuck::Pod;
use memmap2::MmapMut;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Bytes that are mapped at a time; what is not touched takes no memory.
const LEAST_BYTES: usize = 64 << 20;

/// Gives out memory: regions begin on cache lines.
#[derive(Default)]
pub(in super::super) struct Arena {
    mapping: Option<Arc<Mapping>>,
    n_used: usize,
}

/// Zeroed memory that lives as long as a region of it.
struct Mapping {
    first: *mut u8,
    bytes: MmapMut,
}

// SAFETY: the bytes are reached through regions only, which do not overlap and follow the rules of slices.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Elements of its own.
pub(in super::super) struct Region<T> {
    first: *mut T,
    len: usize,
    /// Held, not used.
    _mapping: Arc<Mapping>,
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
        let has_room = |mapping: &&Arc<Mapping>| mapping.bytes.len() - self.n_used >= n_bytes;
        let mapping = match self.mapping.as_ref().filter(has_room) {
            Some(mapping) => mapping.clone(),
            None => {
                self.n_used = 0;
                self.mapping.insert(Arc::new(Mapping::new(n_bytes.max(LEAST_BYTES))?)).clone()
            }
        };
        assert!(align_of::<T>() <= LINE);
        // SAFETY: inside the mapping, as was just checked.
        let first = unsafe { mapping.first.add(self.n_used) }.cast();
        self.n_used += n_bytes;
        Ok(Region { first, len, _mapping: mapping })
    }
}

impl Mapping {
    fn new(n_bytes: usize) -> io::Result<Self> {
        let mut bytes = MmapMut::map_anon(n_bytes)?;
        // A wish: a kernel without large pages says no, and gives small ones.
        #[cfg(target_os = "linux")]
        let _ = bytes.advise(memmap2::Advice::HugePage);
        Ok(Self { first: bytes.as_mut_ptr(), bytes })
    }
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
        let lens = [1, 100, 0, LEAST_BYTES / 2 - 5000, 4096, LEAST_BYTES + 1, 7];
        let mut regions: Vec<Region<u16>> = Vec::new();
        for (index, len) in lens.into_iter().enumerate() {
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
