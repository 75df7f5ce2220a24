//! Inputs of launches: numbers that depend on nothing but their place, rows with poison around them, and buffers.

use super::compare::Output;
use super::launch::POISON;
use crate::Result;
use crate::backend::math::philox;
use crate::backend::params::{Extent, MAX_MEMBERS};
use crate::backend::{Backend, Dtype, MatrixBytes, MatrixSpec};
use bytemuck::Pod;
use half::{bf16, f16};

/// Unit roundoff of f32.
pub(super) const UNIT: f64 = 1.0 / (1 << 24) as f64;

/// Numbers of one case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Random {
    /// Which case.
    pub(super) case: u32,
}

/// Streams of a [`Random`]: one per input.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(super) enum Stream {
    Choice,
    Rows,
    OtherRows,
    Weights,
    OtherWeights,
    Gain,
    OtherGain,
    Bias,
    Keys,
    Values,
    Base,
    Expert,
    Anti,
}

impl Random {
    /// 32 random bits.
    pub(super) fn bits(self, stream: Stream, row: usize, column: usize) -> u32 {
        philox([(column / 4) as u32, row as u32, stream as u32, 0], [self.case, 0x5e1f_7e57])[column % 4]
    }

    /// `width` numbers of a row, uniform in [-1, 1), multiples of 2^-23.
    pub(super) fn uniform(self, stream: Stream, row: usize, width: usize) -> Vec<f32> {
        let number = |column| (self.bits(stream, row, column) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        (0..width).map(number).collect()
    }

    /// Choice number `axis` of this case among `options`.
    pub(super) fn pick<C: Copy>(self, axis: usize, options: &[C]) -> C {
        options[self.bits(Stream::Choice, axis, 0) as usize % options.len()]
    }

    /// One vector per member, around 1 for gains.
    pub(super) fn gains(self, stream: Stream, n_members: usize, width: usize) -> Vec<f32> {
        (0..n_members).flat_map(|member| self.uniform(stream, member, width)).map(|x| 1.0 + 0.5 * x).collect()
    }
}

/// Rows of the members of a launch. Row `index` of member `member` has the numbers of row `first + index`, whatever
/// the launch, so that launches share rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    pub(super) first: usize,
    pub(super) cap: usize,
    pub(super) n_members: usize,
    pub(super) counts: [usize; MAX_MEMBERS],
}

impl Rows {
    /// `n_rows` rows of one member, from row `first`, with no spare room.
    pub(super) fn alone(first: usize, n_rows: usize) -> Self {
        Self { first, cap: n_rows, n_members: 1, counts: [n_rows, 0] }
    }

    /// Rows of one or two members, and `spare` rows that are not of this step.
    pub(super) fn of(counts: &[usize], spare: usize) -> Self {
        let most = counts.iter().copied().max().unwrap_or(0);
        let count = |member: usize| counts.get(member).copied().unwrap_or(0);
        Self { first: 0, cap: most + spare, n_members: counts.len(), counts: std::array::from_fn(count) }
    }

    /// Largest number of rows of a member.
    pub(super) fn most(&self) -> u32 {
        self.counts.into_iter().max().unwrap_or(0) as u32
    }

    /// Rows of the buffers.
    pub(super) fn total(&self) -> usize {
        self.n_members * self.cap
    }

    /// Member and row of each row of the buffers; `None` where it is not of this step.
    pub(super) fn each(&self) -> impl Iterator<Item = Option<(usize, usize)>> + '_ {
        let place = |index: usize| (index / self.cap, index % self.cap);
        (0..self.total()).map(move |index| Some(place(index)).filter(|&(member, row)| row < self.counts[member]))
    }

    /// Activations `[members * cap][width]`, poison in rows that are not of this step. Rows differ in loudness.
    pub(super) fn numbers(&self, random: Random, stream: Stream, width: usize) -> Vec<f32> {
        let row = |row: Option<(usize, usize)>| match row {
            None => vec![f32::from_bits(POISON); width],
            Some((member, row)) => {
                let row = self.first + row;
                let loudness = 2f32.powi((row * 5 % 7) as i32 - 3);
                let key = row * MAX_MEMBERS + member;
                random.uniform(stream, key, width).into_iter().map(|x| loudness * x).collect()
            }
        };
        self.each().flat_map(row).collect()
    }

    /// The extents buffer, where `n_logits` of each member are gathered.
    pub(super) fn extents(&self, n_logits: [usize; MAX_MEMBERS]) -> [Extent; MAX_MEMBERS] {
        std::array::from_fn(|member| Extent { n_rows: self.counts[member] as u32, n_logits: n_logits[member] as u32 })
    }
}

/// A weight matrix on the host.
pub(super) struct Weights {
    spec: MatrixSpec,
    /// Per member, what the stored type holds.
    values: Vec<Vec<f32>>,
    bytes: Vec<Vec<u8>>,
}

impl Weights {
    /// Uniform in [-1, 1), rounded to the stored type. Every fourth row is quiet: below 2^-16, where numbers of f16 are
    /// subnormal, so that a backend that flushes them fails.
    pub(super) fn new(random: Random, stream: Stream, spec: MatrixSpec, n_members: usize) -> Self {
        let numbers = |member| {
            let loudness = |row: usize| if row % 4 == 3 { 2f32.powi(-16) } else { 1.0 };
            let row = |row| {
                let numbers = random.uniform(stream, row * MAX_MEMBERS + member, spec.n_cols);
                numbers.into_iter().map(move |x| loudness(row) * x)
            };
            (0..spec.n_rows).flat_map(row).collect::<Vec<f32>>()
        };
        let (values, bytes) = (0..n_members).map(|member| store(spec.dtype, &numbers(member))).unzip();
        Self { spec, values, bytes }
    }

    /// Row `row` of a member.
    pub(super) fn row(&self, member: usize, row: usize) -> &[f32] {
        &self.values[member][row * self.spec.n_cols..][..self.spec.n_cols]
    }

    pub(super) fn upload<B: Backend>(&self, backend: &B) -> Result<B::Matrix> {
        backend.matrix(self.spec, &self.bytes.iter().map(|bytes| bytes as &dyn MatrixBytes).collect::<Vec<_>>())
    }
}

/// Rounds numbers to a stored type: what it holds, and its bytes.
pub(super) fn store(dtype: Dtype, numbers: &[f32]) -> (Vec<f32>, Vec<u8>) {
    let stored = |&x: &f32| match dtype {
        Dtype::F32 => (x, x.to_bits()),
        Dtype::F16 => (f16::from_f32(x).to_f32(), f16::from_f32(x).to_bits().into()),
        Dtype::Bf16 => (bf16::from_f32(x).to_f32(), bf16::from_f32(x).to_bits().into()),
    };
    let (values, bits): (Vec<f32>, Vec<u32>) = numbers.iter().map(stored).unzip();
    (values, bits.iter().flat_map(|bits| bits.to_le_bytes().into_iter().take(dtype.bytes())).collect())
}

/// A buffer with these records in it.
pub(super) fn filled<B: Backend, P: Pod>(backend: &B, label: &'static str, records: &[P]) -> Result<B::Buf> {
    let bytes = bytemuck::cast_slice(records);
    let buf = backend.alloc(label, bytes.len() / 4)?;
    backend.upload(&buf, 0, bytes)?;
    Ok(buf)
}

/// As [`filled`], or nothing.
pub(super) fn optional<B: Backend, P: Pod>(
    backend: &B,
    label: &'static str,
    records: Option<&Vec<P>>,
) -> Result<Option<B::Buf>> {
    records.map(|records| filled(backend, label, records)).transpose()
}

/// A buffer of poison.
pub(super) fn poisoned<B: Backend>(backend: &B, label: &'static str, words: usize) -> Result<B::Buf> {
    filled(backend, label, &vec![POISON; words])
}

/// Runs what was recorded and reads whole buffers of the given numbers of words.
pub(super) fn finish<B: Backend>(
    backend: &B,
    pass: B::Pass,
    outputs: &[(&'static str, &B::Buf, usize)],
) -> Result<Vec<Output>> {
    let reads: Vec<_> = outputs.iter().map(|&(_, buf, words)| (buf, 0..4 * words)).collect();
    let bytes = backend.collect(backend.submit(pass, &reads)?)?;
    let mut words = bytemuck::pod_collect_to_vec::<u8, u32>(&bytes).into_iter();
    Ok(outputs.iter().map(|&(name, _, n)| Output::words(name, words.by_ref().take(n).collect())).collect())
}
