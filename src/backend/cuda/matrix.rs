//! Weight matrices in the order of bytes in which the kernels take them.
//!
//! A matrix is tiles of 16 x 16, `[n_out / 16][n_in / 16]`, both rounded up and filled with zeros; members follow each
//! other. Lane `l` of a warp takes of a tile columns `4t..4t + 4` of rows `g` and `g + 8`, where g = l / 4 and
//! t = l % 4, in loads of 16 bytes whose lanes follow each other:
//! - 16-bit types: one load, as tensor cores take their A operand: `(g, 4t) (g, 4t + 1) (g + 8, 4t) (g + 8, 4t + 1)`,
//!   then the same of columns 4t + 2 and 4t + 3;
//! - f32: two loads, row g and row g + 8, which is the tile row-major.
//!
//! kernels/common.cuh reads one element of it, kernels/matmul.cuh all.

use super::*;
use std::thread;

/// Rows and columns of a tile.
pub(super) const TILE: usize = 16;
/// Columns of a row that a lane has.
const LANE_COLUMNS: usize = 4;
/// Bytes put in order before they are sent: bounds what stands in memory twice.
const PIECE_BYTES: usize = 32 << 20;
/// Threads that put a piece in order: of more, each would have less to do than it costs to start.
const MAX_THREADS: usize = 16;

/// One or two members of equal shape.
pub struct Matrix<D: Device> {
    /// Shape and type of a member.
    pub(super) spec: MatrixSpec,
    /// Weight sets.
    pub(super) n_members: usize,
    /// The tiles, member after member.
    pub(super) memory: D::Memory,
}

impl<D: Device> Matrix<D> {
    /// Outputs and inputs.
    pub(super) fn shape(&self) -> [usize; 2] {
        [self.spec.n_rows, self.spec.n_cols]
    }

    /// Bytes from one member to the next.
    pub(super) fn member_bytes(&self) -> usize {
        Tiles::new(self.spec).bytes()
    }

    /// Takes one row-major matrix per member, in pieces.
    pub(super) fn new(device: &D, spec: MatrixSpec, members: &[&dyn MatrixBytes]) -> Result<Self> {
        assert!(spec.n_cols.is_multiple_of(8), "rows are read in whole vectors");
        let tiles = Tiles::new(spec);
        let memory = device.alloc("weights", members.len() * tiles.bytes())?;
        let step = (PIECE_BYTES / tiles.band_bytes()).clamp(1, tiles.n_bands);
        let mut piece = vec![0; step * tiles.band_bytes()];
        for (member, data) in members.iter().enumerate() {
            for first in (0..tiles.n_bands).step_by(step) {
                let n_bands = step.min(tiles.n_bands - first);
                let piece = &mut piece[..n_bands * tiles.band_bytes()];
                tiles.pack(first, *data, piece)?;
                device.upload(&memory, member * tiles.bytes() + first * tiles.band_bytes(), piece)?;
            }
        }
        Ok(Self { spec, n_members: members.len(), memory })
    }
}

/// The tiles of one member. A band is those of 16 rows, which follow each other.
struct Tiles {
    spec: MatrixSpec,
    n_bands: usize,
}

impl Tiles {
    fn new(spec: MatrixSpec) -> Self {
        Self { spec, n_bands: spec.n_rows.div_ceil(TILE) }
    }

    fn tile_bytes(&self) -> usize {
        TILE * TILE * self.spec.dtype.bytes()
    }

    fn band_bytes(&self) -> usize {
        self.spec.n_cols.div_ceil(TILE) * self.tile_bytes()
    }

    fn bytes(&self) -> usize {
        self.n_bands * self.band_bytes()
    }

    /// Fills `piece` with whole bands, from band `first` on, by several threads.
    fn pack(&self, first: usize, data: &dyn MatrixBytes, piece: &mut [u8]) -> Result<()> {
        let n_bands = piece.len() / self.band_bytes();
        let n_threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let share = n_bands.div_ceil(n_threads);
        thread::scope(|scope| {
            let shares = piece.chunks_mut(share * self.band_bytes()).enumerate();
            let threads: Vec<_> = shares
                .map(|(index, bands)| scope.spawn(move || self.pack_bands(first + index * share, data, bands)))
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("packing does not panic"))
        })
    }

    /// As [`Self::pack`], by this thread.
    fn pack_bands(&self, first: usize, data: &dyn MatrixBytes, bands: &mut [u8]) -> Result<()> {
        let MatrixSpec { dtype, n_rows, n_cols } = self.spec;
        let row_bytes = n_cols * dtype.bytes();
        let mut rows = vec![0; TILE * row_bytes];
        for (index, band) in bands.chunks_exact_mut(self.band_bytes()).enumerate() {
            let row = (first + index) * TILE;
            let rows = &mut rows[..(n_rows - row).min(TILE) * row_bytes];
            data.copy_to(row * row_bytes, rows)?;
            band.fill(0);
            for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
                let tiles = band.chunks_exact_mut(self.tile_bytes());
                for (tile, bytes) in tiles.zip(bytes.chunks(TILE * dtype.bytes())) {
                    put_row(tile, row, dtype, bytes);
                }
            }
        }
        Ok(())
    }
}

/// Puts row `row` of a tile into its places: all of its columns, or the first eight.
fn put_row(tile: &mut [u8], row: usize, dtype: Dtype, bytes: &[u8]) {
    if dtype == Dtype::F32 {
        return tile[row * TILE * size_of::<f32>()..][..bytes.len()].copy_from_slice(bytes);
    }
    // A lane's 16 bytes are four pairs: those of row g and of row g + 8, by turns.
    const PAIR: usize = 4;
    let (lane, half) = (row % 8 * 4, row / 8);
    for (t, columns) in bytes.chunks_exact(2 * LANE_COLUMNS).enumerate() {
        let pairs = &mut tile[(lane + t) * 4 * PAIR..][..4 * PAIR];
        pairs[half * PAIR..][..PAIR].copy_from_slice(&columns[..PAIR]);
        pairs[(2 + half) * PAIR..][..PAIR].copy_from_slice(&columns[PAIR..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    /// A matrix whose element [row][column] is 1000 row + column + 1, as an integer of its width.
    fn matrix(spec: MatrixSpec) -> Vec<u8> {
        let elements = (0..spec.n_rows).flat_map(|row| (0..spec.n_cols).map(move |column| element(row, column)));
        elements.flat_map(|element| element.to_le_bytes().into_iter().take(spec.dtype.bytes())).collect()
    }

    fn element(row: usize, column: usize) -> u32 {
        (1000 * row + column + 1) as u32
    }

    /// Row and column, within a tile of 16 bits, of each element of a lane: mma.m16n8k16 has in register i of its A
    /// operand rows g and g + 8 by turns, at k = 2t and 2t + 1, from the third on eight further; and pair p of k is the
    /// pair of columns 2 (2 (p % 4) + p / 4).
    fn lane_elements(lane: usize) -> [[usize; 2]; 8] {
        let (g, t) = (lane / 4, lane % 4);
        std::array::from_fn(|i| {
            let (register, low) = (i / 2, i % 2);
            let k = 2 * t + 8 * (register / 2) + low;
            let pair = k / 2;
            [g + 8 * (register % 2), 2 * (2 * (pair % 4) + pair / 4) + k % 2]
        })
    }

    #[test]
    fn every_element_has_its_place_and_the_rest_is_zero() {
        let shapes = [[1, 8], [16, 16], [17, 24], [33, 40], [16 * 9 + 5, 56]];
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for [n_rows, n_cols] in shapes {
                let spec = MatrixSpec { dtype, n_rows, n_cols };
                let tiles = Tiles::new(spec);
                let mut packed = vec![0xff; tiles.bytes()];
                tiles.pack(0, &matrix(spec), &mut packed).expect("a matrix in memory");
                assert_eq!(packed.len(), n_rows.next_multiple_of(16) * n_cols.next_multiple_of(16) * dtype.bytes());
                for (index, bytes) in packed.chunks_exact(dtype.bytes()).enumerate() {
                    let (tile, place) = (index / 256, index % 256);
                    let [row, column] = match dtype {
                        Dtype::F32 => [place / 16, place % 16],
                        Dtype::F16 | Dtype::Bf16 => lane_elements(place / 8)[place % 8],
                    };
                    let n_tiles = n_cols.div_ceil(16);
                    let [row, column] = [tile / n_tiles * 16 + row, tile % n_tiles * 16 + column];
                    let wanted = if row < n_rows && column < n_cols { element(row, column) } else { 0 };
                    assert_eq!(bytes, &wanted.to_le_bytes()[..bytes.len()], "{spec:?} [{row}][{column}]");
                }
            }
        }
    }

    #[test]
    fn a_lane_has_four_neighbours_of_each_of_two_rows() {
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            let mut elements = lane_elements(lane);
            elements.sort();
            let wanted: Vec<_> = [g, g + 8].iter().flat_map(|&row| (4 * t..4 * t + 4).map(move |k| [row, k])).collect();
            assert_eq!(elements.to_vec(), wanted);
        }
    }

    #[test]
    fn pieces_are_the_whole() {
        let spec = MatrixSpec { dtype: Dtype::Bf16, n_rows: 16 * 7 + 3, n_cols: 24 };
        let (tiles, data) = (Tiles::new(spec), matrix(spec));
        let mut whole = vec![0; tiles.bytes()];
        tiles.pack(0, &data, &mut whole).expect("a matrix in memory");
        for step in 1..=tiles.n_bands {
            for (index, wanted) in whole.chunks(step * tiles.band_bytes()).enumerate() {
                let mut piece = vec![0xff; wanted.len()];
                tiles.pack(index * step, &data, &mut piece).expect("a matrix in memory");
                assert_eq!(piece, wanted, "bands from {} on, {step} at a time", index * step);
            }
        }
    }

    /// Fails where row 32 is read.
    struct Broken;

    impl MatrixBytes for Broken {
        fn is_matrix_of(&self, _: usize) -> bool {
            true
        }

        fn copy_to(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
            if (offset..offset + bytes.len()).contains(&(32 * 16)) {
                return Err(Error::device("disk", "row 32"));
            }
            bytes.fill(1);
            Ok(())
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let tiles = Tiles::new(MatrixSpec { dtype: Dtype::F16, n_rows: 64, n_cols: 8 });
        let mut packed = vec![0; tiles.bytes()];
        let error = tiles.pack(0, &Broken, &mut packed).expect_err("row 32 cannot be read");
        assert!(error.to_string().contains("row 32"), "{error}");
    }
}
