//! Weights as the CPU reads them, and the product of matrices with the rows of a step.
//!
//! A matrix is cut into groups of [`GROUP`] outputs, each stored as `[n_in][GROUP]` in the checkpoint's type: one stream
//! of memory per group, no horizontal sum. Missing outputs of the last group are zero.
//!
//! A task is a group and some rows, and makes their outputs whole: the sums stand in registers, then in the first
//! cache, then the op's epilogue makes outputs of them. A thread's tasks are groups that follow each other in memory.

use super::rows::{Prepared, Rows, Source};
use super::simd::memory::Region;
use super::simd::work::{Block, Grid, Place};
use super::simd::{Ahead, GROUP, Kernel, MAX_TILE_ROWS, Tile, Weight};
use super::*;
use half::{bf16, f16};

/// Bytes of rows that stay in a core's second cache while all groups pass.
const ROWS_BYTES: usize = 256 << 10;
/// Least rows of a task, where there are more: a group read from memory is used for as many.
const MIN_ROWS: usize = 48;

/// Columns that are interleaved at a time: what the rows of a group are spread over stays in the first cache.
const STRIP: usize = 32;

/// A matrix of one or two members.
pub struct Matrix {
    n_out: usize,
    n_in: usize,
    members: Vec<Elements>,
}

enum Elements {
    F32(Region<f32>),
    F16(Region<f16>),
    Bf16(Region<bf16>),
}

impl Matrix {
    pub(super) fn new(cpu: &Cpu, spec: MatrixSpec, members: &[&dyn MatrixBytes]) -> Result<Self> {
        let MatrixSpec { dtype, n_rows: n_out, n_cols: n_in } = spec;
        let shape = [n_out, n_in];
        let elements = |bytes: &&dyn MatrixBytes| match dtype {
            Dtype::F32 => {
                interleave(cpu, shape, *bytes, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).map(Elements::F32)
            }
            Dtype::F16 => interleave(cpu, shape, *bytes, |b| f16::from_le_bytes([b[0], b[1]])).map(Elements::F16),
            Dtype::Bf16 => interleave(cpu, shape, *bytes, |b| bf16::from_le_bytes([b[0], b[1]])).map(Elements::Bf16),
        };
        Ok(Self { n_out, n_in, members: members.iter().map(elements).collect::<Result<_>>()? })
    }

    /// Outputs and inputs.
    pub(super) fn shape(&self) -> [usize; 2] {
        [self.n_out, self.n_in]
    }

    /// Outputs.
    pub(super) fn n_out(&self) -> usize {
        self.n_out
    }

    /// Row `index` of a member, widened.
    pub(super) fn read_row(&self, member: usize, index: usize, row: &mut [f32]) {
        fn gather<W: Weight>(elements: &[W], index: usize, row: &mut [f32]) {
            let first = index / GROUP * row.len() * GROUP + W::place(index % GROUP);
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

    /// The sums of a group with a tile, which is number `index` of the `n` that a task takes it through.
    fn multiply(&self, isa: Isa, group: Group, rows: &Rows, [index, n]: [usize; 2], sums: &mut [[f32; GROUP]]) {
        let x = rows.from(group.first_row);
        let span = group.index * self.n_in * GROUP..(group.index + 1) * self.n_in * GROUP;
        let tile = |ahead| Tile { x, stride: rows.stride, ahead };
        match &self.members[group.member] {
            Elements::F32(w) => isa.multiply(&w[span.clone()], tile(Ahead::new(&w[span], index, n)), sums),
            Elements::F16(w) => isa.multiply(&w[span.clone()], tile(Ahead::new(&w[span], index, n)), sums),
            Elements::Bf16(w) => isa.multiply(&w[span.clone()], tile(Ahead::new(&w[span], index, n)), sums),
        }
    }
}

/// A group of a member's outputs, and the first of some rows of a block.
#[derive(Clone, Copy)]
struct Group {
    member: usize,
    index: usize,
    first_row: usize,
}

/// Row-major bytes to groups. A thread reads a group's rows, which checks them, and interleaves them while they stand in
/// its cache; the whole matrix is in memory once.
fn interleave<W: Weight + Pod>(
    cpu: &Cpu,
    [n_out, n_in]: [usize; 2],
    bytes: &dyn MatrixBytes,
    read: impl Fn(&[u8]) -> W + Sync,
) -> Result<Region<W>> {
    let (n_groups, width, row_bytes) = (n_out.div_ceil(GROUP), n_in * GROUP, n_in * size_of::<W>());
    let needed = (n_groups * width * size_of::<W>()) as u64;
    let refused = |_| Error::Memory { what: "a weight matrix".into(), needed, limit: isize::MAX as u64 };
    // Zeroed by the system as it is first touched, by the thread that fills it.
    let mut elements: Region<W> = cpu.memory.borrow_mut().zeroed(n_groups * width).map_err(refused)?;
    let fill = |index: usize, group: &mut [W]| -> Result<()> {
        let first = index * GROUP;
        let mut rows = vec![0; (n_out - first).min(GROUP) * row_bytes];
        bytes.copy_to(first * row_bytes, &mut rows)?;
        for (index, strip) in group.chunks_mut(STRIP * GROUP).enumerate() {
            let bytes = index * STRIP * size_of::<W>()..(index * STRIP + strip.len() / GROUP) * size_of::<W>();
            for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
                let place = W::place(lane);
                for (k, element) in row[bytes.clone()].chunks_exact(size_of::<W>()).enumerate() {
                    strip[k * GROUP + place] = read(element);
                }
            }
        }
        Ok(())
    };
    let mut groups: Vec<_> =
        elements.chunks_exact_mut(width).enumerate().map(|(index, group)| (index, group, Ok(()))).collect();
    cpu.share(&mut groups, |(index, group, done)| *done = fill(*index, group));
    groups.into_iter().try_for_each(|(_, _, done)| done)?;
    Ok(elements)
}

/// What an op makes of the sums of `N` matrices. `run` is `#[inline(always)]`, as for a [`Kernel`].
pub(super) trait Epilogue<const N: usize>: Sync {
    /// Outputs `at.column..` of a row, as many as `y` has; the sums may be more.
    fn run(&self, at: Output, sums: [&[f32; GROUP]; N], y: &mut [f32]);
}

/// Where outputs are.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub(super) member: usize,
    pub(super) column: usize,
    /// The factor of the row's sums.
    pub(super) factor: f32,
}

/// The epilogue of a tile: the rows of a block from `first_row` on, as many as `n_rows`.
struct Finish<'a, 'b, E, const N: usize> {
    epilogue: &'a E,
    member: usize,
    column: usize,
    rows: &'a Rows<'a>,
    sums: &'a [[[f32; GROUP]; MAX_TILE_ROWS]; N],
    n_rows: usize,
    first_row: usize,
    block: &'a mut Block<'b, f32>,
}

impl<E: Epilogue<N>, const N: usize> Kernel for Finish<'_, '_, E, N> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Finish { epilogue, member, column, rows, sums, n_rows, first_row, block } = self;
        for index in 0..n_rows {
            let at = Output { member, column, factor: rows.factor(first_row + index) };
            epilogue.run(at, sums.each_ref().map(|sums| &sums[index]), block.row(first_row + index));
        }
    }
}

thread_local! {
    /// What a thread has prepared, which grows to the largest block and stays.
    static PREPARED: RefCell<Prepared> = RefCell::default();
}

/// `n_rows` rows of each member times `N` matrices of one shape, made outputs in `y`, `[members * cap][n_out]`.
pub(super) fn multiply<const N: usize>(
    cpu: &Cpu,
    w: [&Matrix; N],
    (source, n_rows): (&impl Source, [usize; MAX_MEMBERS]),
    (y, cap): (&mut [f32], usize),
    epilogue: &impl Epilogue<N>,
) {
    let (isa, [n_out, n_in]) = (cpu.isa, [w[0].n_out, w[0].n_in]);
    let grid = Grid {
        cap,
        width: n_out,
        n_rows,
        rows: (ROWS_BYTES / (size_of::<f32>() * n_in)).max(MIN_ROWS),
        columns: GROUP,
        operations: n_rows.iter().sum::<usize>() * N * n_in * n_out,
    };
    cpu.threads.blocks(y, &grid, |Place { member, rows, columns }, mut block| {
        PREPARED.with_borrow_mut(|prepared| {
            let (column, n) = (columns.start, rows.len());
            let (rows, n_tiles) = (&source.rows(isa, prepared, member, rows), n.div_ceil(isa.tile_rows()));
            let mut sums = [[[0.0; GROUP]; MAX_TILE_ROWS]; N];
            for tile in 0..n_tiles {
                let in_block = n * tile / n_tiles..n * (tile + 1) / n_tiles;
                let group = Group { member, index: column / GROUP, first_row: in_block.start };
                for (w, sums) in w.iter().zip(&mut sums) {
                    w.multiply(isa, group, rows, [tile, n_tiles], &mut sums[..in_block.len()]);
                }
                let (sums, n_rows, first_row) = (&sums, in_block.len(), in_block.start);
                isa.run(Finish { epilogue, member, column, rows, sums, n_rows, first_row, block: &mut block });
            }
        });
    });
}
