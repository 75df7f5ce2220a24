//! Buffers and weight matrices on the device, and the way to and from them.

use super::device::Device;
use super::{BLOCK_ROWS, IMAGE_WIDTH, MatrixForm};
use crate::backend::{MatrixBytes, MatrixSpec};
use crate::{Error, Result};
use bytemuck::{Pod, Zeroable};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes sent at a time: bounds the memory that uploads in flight hold.
const UPLOAD_BYTES: usize = 32 << 20;

/// Device memory in 32-bit words.
pub struct Buf {
    pub(super) buffer: ::wgpu::Buffer,
    id: Id,
}

/// The number of a buffer or image, from 1: what a launch is known by.
struct Id {
    number: u32,
    dropped: Dropped,
}

/// Numbers that were dropped since the launches that bind them were last cleared out.
pub(super) type Dropped = Arc<Mutex<Vec<u32>>>;

impl Id {
    fn new(dropped: &Dropped) -> Self {
        static LAST: AtomicU32 = AtomicU32::new(0);
        Self { number: LAST.fetch_add(1, Ordering::Relaxed) + 1, dropped: Arc::clone(dropped) }
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        if let Ok(mut dropped) = self.dropped.lock() {
            dropped.push(self.number);
        }
    }
}

impl Buf {
    /// Zeroed memory of `bytes` bytes.
    pub(super) fn new(device: &Device, dropped: &Dropped, label: &str, bytes: u64) -> Result<Self> {
        device.check()?;
        let limit = device.adapter.max_buffer_bytes.min(device.adapter.max_binding_bytes);
        if bytes > limit {
            return Err(Error::Memory { what: label.into(), needed: bytes, limit });
        }
        let usage = ::wgpu::BufferUsages::STORAGE | ::wgpu::BufferUsages::COPY_SRC | ::wgpu::BufferUsages::COPY_DST;
        let descriptor = ::wgpu::BufferDescriptor { label: Some(label), size: bytes, usage, mapped_at_creation: false };
        let buffer = device.allocated(label, bytes, || device.device.create_buffer(&descriptor))?;
        Ok(Self { buffer, id: Id::new(dropped) })
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

/// Weights in a two-dimensional image of 16-byte texels, IMAGE_WIDTH in a row, word after word.
///
/// A software driver loads a word of a buffer one thread and one component at a time, but a texel of an image for
/// eight threads at once (benches/README.md has figures); what a GPU wants is a buffer.
pub(super) struct Image {
    view: ::wgpu::TextureView,
    id: Id,
}

impl Image {
    const ROW_BYTES: usize = 16 * IMAGE_WIDTH as usize;

    /// Takes `words`, whose last row of texels need not be whole.
    fn new(device: &Device, dropped: &Dropped, mut words: Vec<u8>) -> Result<Self> {
        device.check()?;
        words.resize(words.len().next_multiple_of(Self::ROW_BYTES), 0);
        let size = |bytes: usize| ::wgpu::Extent3d {
            width: IMAGE_WIDTH,
            height: (bytes / Self::ROW_BYTES) as u32,
            depth_or_array_layers: 1,
        };
        let descriptor = ::wgpu::TextureDescriptor {
            label: Some("weights"),
            size: size(words.len()),
            mip_level_count: 1,
            sample_count: 1,
            dimension: ::wgpu::TextureDimension::D2,
            format: ::wgpu::TextureFormat::Rgba32Uint,
            usage: ::wgpu::TextureUsages::STORAGE_BINDING | ::wgpu::TextureUsages::COPY_DST,
            view_formats: &[],
        };
        let create = || device.device.create_texture(&descriptor);
        let texture = device.allocated("weights", words.len() as u64, create)?;
        let layout = ::wgpu::TexelCopyBufferLayout {
            offset: 0,
            bytes_per_row: Some(Self::ROW_BYTES as u32),
            rows_per_image: None,
        };
        for (i, piece) in words.chunks(UPLOAD_BYTES).enumerate() {
            let mut target = texture.as_image_copy();
            target.origin.y = (i * UPLOAD_BYTES / Self::ROW_BYTES) as u32;
            device.queue.write_texture(target, piece, layout, size(piece.len()));
            device.wait(Some(device.queue.submit([])))?;
        }
        Ok(Self { view: texture.create_view(&Default::default()), id: Id::new(dropped) })
    }
}

/// Words of some rows of a matrix, all members.
pub(super) enum Words {
    Buffer(Buf),
    Image(Image),
}

/// What a shader can be given.
pub(super) trait Bind {
    /// Its number: no other has had it.
    fn number(&self) -> u32;
    fn resource(&self) -> ::wgpu::BindingResource<'_>;
}

impl Bind for Buf {
    fn number(&self) -> u32 {
        self.id.number
    }

    fn resource(&self) -> ::wgpu::BindingResource<'_> {
        self.buffer.as_entire_binding()
    }
}

impl Bind for Words {
    fn number(&self) -> u32 {
        match self {
            Words::Buffer(buf) => buf.id.number,
            Words::Image(image) => image.id.number,
        }
    }

    fn resource(&self) -> ::wgpu::BindingResource<'_> {
        match self {
            Words::Buffer(buf) => buf.resource(),
            Words::Image(image) => ::wgpu::BindingResource::TextureView(&image.view),
        }
    }
}

/// A weight matrix in blocks of rows (shaders/parts/weights.wgsl), in as many parts as the binding limit asks for.
pub struct Matrix {
    pub(super) spec: MatrixSpec,
    pub(super) n_members: usize,
    parts: Vec<(Range<usize>, Words)>,
}

/// The output rows of one dispatch and where they stand in the bound words. Mirrored in common.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(super) struct Part {
    /// First output row.
    pub first: u32,
    /// Output rows.
    pub n_rows: u32,
    /// Row `first` of member 0 in the bound words: the first of a block.
    pub offset: u32,
    /// Rows from one member to the next: whole blocks.
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
        (limit, form): (u64, MatrixForm),
        spec: MatrixSpec,
        members: &[&dyn MatrixBytes],
    ) -> Result<Self> {
        assert!(spec.n_cols.is_multiple_of(8), "rows are read eight elements at a time");
        let needed = (block_bytes(spec) * members.len()) as u64;
        if needed > limit {
            return Err(Error::Memory { what: "a block of weights".into(), needed, limit });
        }
        let step = (limit / needed) as usize * BLOCK_ROWS;
        let mut parts = Vec::new();
        for first in (0..spec.n_rows).step_by(step) {
            let rows = first..spec.n_rows.min(first + step);
            let mut words = Vec::new();
            // An image has whole rows of texels, which are filled up in place.
            let bytes = (rows.len().div_ceil(BLOCK_ROWS) * needed as usize).next_multiple_of(Image::ROW_BYTES);
            let refused = |_| Error::Memory { what: "weights on their way".into(), needed: bytes as u64, limit };
            words.try_reserve_exact(bytes).map_err(refused)?;
            members.iter().try_for_each(|data| push_blocks(&mut words, spec, rows.clone(), *data))?;
            parts.push((
                rows,
                match form {
                    MatrixForm::Buffers => {
                        let buf = Buf::new(device, dropped, "weights", words.len() as u64)?;
                        buf.upload(device, 0, &words)?;
                        Words::Buffer(buf)
                    }
                    MatrixForm::Images => Words::Image(Image::new(device, dropped, words)?),
                },
            ));
        }
        Ok(Self { spec, n_members: members.len(), parts })
    }

    /// Outputs and inputs.
    pub(super) fn shape(&self) -> [usize; 2] {
        [self.spec.n_rows, self.spec.n_cols]
    }

    /// The dispatches that read the whole matrix.
    pub(super) fn parts(&self) -> impl Iterator<Item = (Part, &Words)> {
        self.parts.iter().map(|(rows, words)| (part(rows.clone(), rows, None), words))
    }

    /// The dispatches that read two matrices of one shape: they may be cut at different rows.
    pub(super) fn parts_with<'a>(&'a self, other: &'a Matrix) -> impl Iterator<Item = (Part, &'a Words, &'a Words)> {
        assert_eq!(self.n_members, other.n_members, "matrices of as many members");
        self.parts.iter().flat_map(move |(rows, words)| {
            other.parts.iter().filter_map(move |(other_rows, other_words)| {
                let common = rows.start.max(other_rows.start)..rows.end.min(other_rows.end);
                (!common.is_empty()).then(|| (part(common, rows, Some(other_rows)), words, other_words))
            })
        })
    }
}

/// Elements of a row between two steps of a group of lanes: eight octets.
const STEP: usize = 64;

/// Bytes of a block of rows, padded to whole steps.
fn block_bytes(spec: MatrixSpec) -> usize {
    BLOCK_ROWS * spec.n_cols.next_multiple_of(STEP) * spec.dtype.bytes()
}

/// Appends `rows` of a row-major matrix block by block, each step by step, each row by row; zeros where it has none.
fn push_blocks(words: &mut Vec<u8>, spec: MatrixSpec, rows: Range<usize>, data: &dyn MatrixBytes) -> Result<()> {
    let row_bytes = spec.n_cols * spec.dtype.bytes();
    let step_bytes = STEP * spec.dtype.bytes();
    let mut read = Vec::new();
    for block in rows.clone().step_by(BLOCK_ROWS) {
        read.resize((rows.end - block).min(BLOCK_ROWS) * row_bytes, 0);
        data.copy_to(block * row_bytes, &mut read)?;
        for step in (0..row_bytes).step_by(step_bytes) {
            for row in 0..BLOCK_ROWS {
                let end = words.len() + step_bytes;
                if let Some(row) = read.get(row * row_bytes..(row + 1) * row_bytes) {
                    words.extend_from_slice(&row[step..row_bytes.min(step + step_bytes)]);
                }
                words.resize(end, 0);
            }
        }
    }
    Ok(())
}

fn part(common: Range<usize>, rows: &Range<usize>, second: Option<&Range<usize>>) -> Part {
    let second = second.unwrap_or(rows);
    Part {
        first: common.start as u32,
        n_rows: common.len() as u32,
        offset: (common.start - rows.start) as u32,
        stride: rows.len().next_multiple_of(BLOCK_ROWS) as u32,
        second_offset: (common.start - second.start) as u32,
        second_stride: second.len().next_multiple_of(BLOCK_ROWS) as u32,
        reserved: [0; 2],
    }
}
