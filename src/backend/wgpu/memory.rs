//! Buffers and weight matrices on the device, and the way to and from them.

use super::device::Device;
use crate::backend::MatrixSpec;
use crate::{Error, Result};
use bytemuck::{Pod, Zeroable};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Bytes sent at a time: bounds the memory that uploads in flight hold.
const UPLOAD_BYTES: usize = 32 << 20;

/// Device memory in 32-bit words.
pub struct Buf {
    pub(super) buffer: ::wgpu::Buffer,
    dropped: Dropped,
}

/// Buffers dropped since the bind groups that hold them were last cleared out.
pub(super) type Dropped = Arc<Mutex<Vec<::wgpu::Buffer>>>;

impl Buf {
    /// Zeroed memory of `bytes` bytes.
    pub(super) fn new(device: &Device, dropped: &Dropped, label: &str, bytes: u64) -> Result<Self> {
        device.check()?;
        let limit = device.adapter.max_buffer_bytes.min(device.adapter.max_binding_bytes);
        if bytes > limit {
            return Err(Error::Memory { what: label.into(), needed: bytes, limit });
        }
        let usage = ::wgpu::BufferUsages::STORAGE | ::wgpu::BufferUsages::COPY_SRC | ::wgpu::BufferUsages::COPY_DST;
        let scope = device.device.push_error_scope(::wgpu::ErrorFilter::OutOfMemory);
        let descriptor = ::wgpu::BufferDescriptor { label: Some(label), size: bytes, usage, mapped_at_creation: false };
        let buffer = device.device.create_buffer(&descriptor);
        if pollster::block_on(scope.pop()).is_some() {
            return Err(device.error(format_args!("out of memory: {label} needs {bytes} bytes")));
        }
        device.check()?;
        Ok(Self { buffer, dropped: Arc::clone(dropped) })
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.buffer.size() as usize
    }

    /// Writes `data` at byte `offset`, before anything submitted later.
    pub(super) fn upload(&self, device: &Device, offset: usize, data: &[u8]) -> Result<()> {
        for (i, piece) in data.chunks(UPLOAD_BYTES).enumerate() {
            device.queue.write_buffer(&self.buffer, (offset + i * UPLOAD_BYTES) as u64, piece);
            if piece.len() == UPLOAD_BYTES {
                device.wait(Some(device.queue.submit([])))?;
            }
        }
        device.check()
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if let Ok(mut dropped) = self.dropped.lock() {
            dropped.push(self.buffer.clone());
        }
    }
}

/// A weight matrix: rows as they come, in as many buffers as the binding limit asks for.
pub struct Matrix {
    pub(super) spec: MatrixSpec,
    pub(super) n_members: usize,
    parts: Vec<(Range<usize>, Buf)>,
}

/// The output rows of one dispatch and where they stand in the bound buffers. Mirrored in common.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(super) struct Part {
    /// First output row.
    pub first: u32,
    /// Output rows.
    pub n_rows: u32,
    /// Row `first` of member 0 in the bound buffer.
    pub offset: u32,
    /// Rows from one member to the next.
    pub stride: u32,
    /// `offset` in the second matrix, where the op has two.
    pub second_offset: u32,
    /// `stride` in the second matrix.
    pub second_stride: u32,
    /// Padding to a multiple of 16 bytes.
    pub reserved: [u32; 2],
}

impl Matrix {
    /// Takes one row-major matrix per member. Every part holds the same rows of all members, at most `limit` bytes.
    pub(super) fn new(
        device: &Device,
        dropped: &Dropped,
        limit: u64,
        spec: MatrixSpec,
        members: &[&[u8]],
    ) -> Result<Self> {
        assert!(spec.n_cols.is_multiple_of(8), "rows are read eight elements at a time");
        assert!(members.iter().all(|bytes| bytes.len() == spec.bytes()), "one whole matrix per member");
        let row_bytes = spec.n_cols * spec.dtype.bytes();
        let needed = (row_bytes * members.len()) as u64;
        if needed > limit {
            return Err(Error::Memory { what: "a row of weights".into(), needed, limit });
        }
        let step = (limit / needed) as usize;
        let mut parts = Vec::new();
        for first in (0..spec.n_rows).step_by(step) {
            let rows = first..spec.n_rows.min(first + step);
            let bytes = rows.len() * row_bytes;
            let buf = Buf::new(device, dropped, "weights", (bytes * members.len()) as u64)?;
            for (member, data) in members.iter().enumerate() {
                buf.upload(device, member * bytes, &data[first * row_bytes..][..bytes])?;
            }
            parts.push((rows, buf));
        }
        Ok(Self { spec, n_members: members.len(), parts })
    }

    /// The dispatches that read the whole matrix.
    pub(super) fn parts(&self) -> impl Iterator<Item = (Part, &Buf)> {
        self.parts.iter().map(|(rows, buf)| (part(rows.clone(), rows, None), buf))
    }

    /// The dispatches that read two matrices of one shape: they may be cut at different rows.
    pub(super) fn parts_with<'a>(&'a self, other: &'a Matrix) -> impl Iterator<Item = (Part, &'a Buf, &'a Buf)> {
        let shape = |matrix: &Matrix| (matrix.spec.n_rows, matrix.spec.n_cols, matrix.n_members);
        assert_eq!(shape(self), shape(other), "matrices of one shape");
        self.parts.iter().flat_map(move |(rows, buf)| {
            other.parts.iter().filter_map(move |(other_rows, other_buf)| {
                let common = rows.start.max(other_rows.start)..rows.end.min(other_rows.end);
                (!common.is_empty()).then(|| (part(common, rows, Some(other_rows)), buf, other_buf))
            })
        })
    }
}

fn part(common: Range<usize>, rows: &Range<usize>, second: Option<&Range<usize>>) -> Part {
    let second = second.unwrap_or(rows);
    Part {
        first: common.start as u32,
        n_rows: common.len() as u32,
        offset: (common.start - rows.start) as u32,
        stride: rows.len() as u32,
        second_offset: (common.start - second.start) as u32,
        second_stride: second.len() as u32,
        reserved: [0; 2],
    }
}
