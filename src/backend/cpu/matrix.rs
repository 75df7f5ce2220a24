//! Weights as the CPU reads them, and the product of a matrix with the rows of a step.
//!
//! A matrix is cut into groups of [`GROUP`] outputs, each stored as `[n_in][GROUP]` in the checkpoint's type: one stream
//! of memory per group, no horizontal sum. Missing outputs of the last group are zero.

use super::simd::Weight;
use super::*;
use half::{bf16, f16};
use rayon::prelude::*;

/// Outputs that stand interleaved.
pub(super) const GROUP: usize = 64;

/// A matrix of one or two members.
pub struct Matrix {
    n_out: usize,
    n_in: usize,
    members: Vec<Elements>,
}

enum Elements {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Matrix {
    pub(super) fn new(spec: MatrixSpec, members: &[&[u8]]) -> Result<Self> {
        let MatrixSpec { dtype, n_rows: n_out, n_cols: n_in } = spec;
        assert!(members.iter().all(|bytes| bytes.len() == spec.bytes()), "a matrix has the bytes of its shape");
        let elements = |bytes: &&[u8]| match dtype {
            Dtype::F32 => {
                interleave(n_out, n_in, bytes, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).map(Elements::F32)
            }
            Dtype::F16 => interleave(n_out, n_in, bytes, |b| f16::from_le_bytes([b[0], b[1]])).map(Elements::F16),
            Dtype::Bf16 => interleave(n_out, n_in, bytes, |b| bf16::from_le_bytes([b[0], b[1]])).map(Elements::Bf16),
        };
        Ok(Self { n_out, n_in, members: members.iter().map(elements).collect::<Result<_>>()? })
    }

    /// Outputs.
    pub(super) fn n_out(&self) -> usize {
        self.n_out
    }

    /// Row `index` of a member, widened.
    pub(super) fn read_row(&self, member: usize, index: usize, row: &mut [f32]) {
        fn gather<W: Weight>(elements: &[W], index: usize, row: &mut [f32]) {
            let first = index / GROUP * row.len() * GROUP + index % GROUP;
            for (k, x) in row.iter_mut().enumerate() {
                *x = elements[first + k * GROUP].widen();
            }
        }
        match &self.members[member] {
            Elements::F32(elements) => gather(elements, index, row),
            Elements::F16(elements) => gather(elements, index, row),
            Elements::Bf16(elements) => gather(elements, index, row),
        }
    }
}

/// Row-major bytes to groups.
fn interleave<W: Weight + Default>(
    n_out: usize,
    n_in: usize,
    bytes: &[u8],
    read: impl Fn(&[u8]) -> W + Sync,
) -> Result<Vec<W>> {
    let n_elements = n_out.div_ceil(GROUP) * GROUP * n_in;
    let mut elements = Vec::new();
    let needed = (n_elements * size_of::<W>()) as u64;
    let refused = |_| Error::Memory { what: "a weight matrix".into(), needed, limit: isize::MAX as u64 };
    elements.try_reserve_exact(n_elements).map_err(refused)?;
    elements.resize(n_elements, W::default());
    elements.par_chunks_mut(GROUP * n_in).zip(bytes.par_chunks(GROUP * n_in * size_of::<W>())).for_each(
        |(group, bytes)| {
            for (lane, row) in bytes.chunks_exact(n_in * size_of::<W>()).enumerate() {
                for (k, element) in row.chunks_exact(size_of::<W>()).enumerate() {
                    group[k * GROUP + lane] = read(element);
                }
            }
        },
    );
    Ok(elements)
}

/// Rows to multiply: `[members][cap][n_in]`, of which `n_rows` of each member count.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) x: &'a [f32],
    pub(super) cap: usize,
    pub(super) n_rows: [usize; MAX_MEMBERS],
}

impl Rows<'_> {
    fn most(&self) -> usize {
        self.n_rows.into_iter().max().unwrap_or(0)
    }
}

/// Sums of a product: `[members][groups][rows][GROUP]`.
pub(super) struct Sums<'a> {
    sums: &'a [f32],
    n_groups: usize,
    n_rows: usize,
}

impl Sums<'_> {
    /// The sums of row `row` of a member in order of outputs, `GROUP` at a time; the last may have too many.
    pub(super) fn row(&self, member: usize, row: usize) -> impl Iterator<Item = &[f32]> {
        let group = move |group| ((member * self.n_groups + group) * self.n_rows + row) * GROUP;
        (0..self.n_groups).map(move |index| &self.sums[group(index)..][..GROUP])
    }
}

/// All rows of all members times their matrices. Threads take groups.
pub(super) fn multiply<'a>(cpu: &Cpu, w: &Matrix, rows: Rows, sums: &'a mut Vec<f32>) -> Sums<'a> {
    let (n_groups, n_rows) = (w.n_out.div_ceil(GROUP), rows.most());
    let n_sums = w.members.len() * n_groups * n_rows * GROUP;
    if sums.len() < n_sums {
        sums.resize(n_sums, 0.0);
    }
    let (isa, n_in, members) = (cpu.isa, w.n_in, &w.members);
    let group = |(task, sums): (usize, &mut [f32])| {
        let (member, group) = (task / n_groups, task % n_groups);
        let n_rows = rows.n_rows[member];
        let x = &rows.x[member * rows.cap * n_in..][..n_rows * n_in];
        let (sums, span) = (&mut sums[..n_rows * GROUP], group * n_in * GROUP..(group + 1) * n_in * GROUP);
        match &members[member] {
            Elements::F32(elements) => isa.multiply(&elements[span], x, n_in, sums),
            Elements::F16(elements) => isa.multiply(&elements[span], x, n_in, sums),
            Elements::Bf16(elements) => isa.multiply(&elements[span], x, n_in, sums),
        }
    };
    if n_rows > 0 {
        let tasks = sums[..n_sums].par_chunks_mut(n_rows * GROUP).enumerate();
        cpu.pool.install(|| tasks.for_each(group));
    }
    Sums { sums: &sums[..n_sums], n_groups, n_rows }
}
