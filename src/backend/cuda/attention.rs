//! Plans of rope_append and attention.

use super::kernels::Kernel;
use super::*;
use bytemuck::{Pod, Zeroable};

/// Most spans that a row's keys are cut in: a lane of a warp has one of them when they are folded.
pub(super) const MAX_SPANS: u32 = 32;
/// Columns of a block, as of a tensor-core product: query heads of one KV head, of one row or of some.
pub(super) const COLUMNS: u32 = 8;
/// Of what a block leaves of a span: values of 64 dims of its columns.
pub(super) const CHUNK_BYTES: usize = CHUNK as usize * COLUMNS as usize * 4;
/// And for each column a maximum and a sum.
pub(super) const SUMS_BYTES: usize = COLUMNS as usize * 2 * 4;
/// Dims that a block holds as one.
const CHUNK: u32 = 64;

/// Bytes for spans that meet in memory, on each branch: rows times KV heads of 128 dims, 252 of them.
pub(super) const ROOM_BYTES: usize = 32 << 20;
/// Rows times KV heads of a launch whose blocks can meet.
const MAX_MEETINGS: u32 = 4096;
/// Blocks of a launch from which on more would only have to be started: about 16 for each processor of a large card.
const MANY_BLOCKS: u32 = 2048;

/// Heads of a block of rope_append, a warp for each.
const ROPE_HEADS: u32 = 4;

/// rope_append's argument.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RopeAppendArgs {
    qkv: u64,
    plane: u64,
    places: u64,
    page_table: u64,
    rotary: u64,
    q_gain: u64,
    k_gain: u64,
    extents: u64,
    params: RopeAppendParams,
}

pub(super) static ROPE_APPEND: &[Kernel] = &[Kernel {
    stem: "rope_append",
    name: "rope_append",
    threads: 32 * ROPE_HEADS,
    args: "RopeAppendArgs",
    args_bytes: size_of::<RopeAppendArgs>(),
}];

/// attention's argument.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AttentionArgs {
    y: u64,
    qkv: u64,
    plane: u64,
    places: u64,
    page_table: u64,
    extents: u64,
    partials: u64,
    arrivals: u64,
    params: AttentionParams,
    n_parts: u32,
    n_rows: u32,
}

const fn attention_of(name: &'static str) -> Kernel {
    Kernel { stem: "attention", name, threads: 128, args: "AttentionArgs", args_bytes: size_of::<AttentionArgs>() }
}

/// By type, then widest head; the last of each has no aligned octets.
pub(super) static ATTENTION: &[Kernel] = &[
    attention_of("attention_f32_64"),
    attention_of("attention_f32_128"),
    attention_of("attention_f32_256"),
    attention_of("attention_f32_any"),
    attention_of("attention_f16_64"),
    attention_of("attention_f16_128"),
    attention_of("attention_f16_256"),
    attention_of("attention_f16_any"),
    attention_of("attention_bf16_64"),
    attention_of("attention_bf16_128"),
    attention_of("attention_bf16_256"),
    attention_of("attention_bf16_any"),
];

/// Where the blocks that share a row's keys leave what they have, apart for each branch of a step.
pub(super) struct Scratch<D: Device> {
    partials: D::Memory,
    /// How many have come, per row and heads of a block: 0 before and after a launch.
    arrivals: D::Memory,
}

impl<D: Device> Scratch<D> {
    /// With `bytes` per branch.
    pub(super) fn new(device: &D, bytes: usize) -> Result<Self> {
        let partials = device.alloc("attention partials", N_BRANCHES * bytes.max(16))?;
        let arrivals = device.alloc("attention arrivals", N_BRANCHES * MAX_MEETINGS as usize * 4)?;
        Ok(Self { partials, arrivals })
    }
}

/// Words of a plane are counted in 32 bits.
fn check_plane(plane: &impl Memory) {
    assert!(plane.bytes() / 4 <= u32::MAX as usize, "a plane of {} bytes", plane.bytes());
}

pub(super) fn rope_append<D: Device>(pass: &mut Pass, op: RopeAppend<'_, Cuda<D>>) {
    let RopeAppend { qkv, plane, places, page_table, rotary, q_gain, k_gain, extents, n_rows, params } = op;
    let RopeAppendParams { n_heads, n_kv_heads, wide_norm, .. } = params;
    check_plane(plane);
    let tiles = match wide_norm {
        0 => (n_heads + 2 * n_kv_heads).div_ceil(ROPE_HEADS),
        _ => 2 + n_kv_heads.div_ceil(ROPE_HEADS),
    };
    let grid = [pass.bound(n_rows), tiles, checks::members(places.bytes() / size_of::<Place>(), params.cap)];
    let args = RopeAppendArgs {
        qkv: qkv.address(),
        plane: plane.address(),
        places: places.address(),
        page_table: page_table.address(),
        rotary: address_of(rotary),
        q_gain: address_of(q_gain),
        k_gain: address_of(k_gain),
        extents: extents.address(),
        params,
    };
    let branch = pass.branch_of(extents);
    pass.launch(&ROPE_APPEND[0], grid, &args, branch);
}

pub(super) fn attention<D: Device>(cuda: &Cuda<D>, pass: &mut Pass, op: Attention<'_, Cuda<D>>) {
    let Attention { y, qkv, plane, places, page_table, extents, n_rows, params } = op;
    check_plane(plane);
    let branch = pass.branch_of(extents);
    let Branch::Stack(stack) = branch else { unreachable!("rows have a stack") };
    let room = cuda.spans.partials.bytes() / N_BRANCHES;
    let n_rows = pass.bound(n_rows);
    let shape = Shape { params, n_rows, n_members: checks::members(places.bytes() / size_of::<Place>(), params.cap) };
    let (n_parts, rows_of_block) = (shape.n_parts(room), shape.rows_of_block());
    let args = AttentionArgs {
        y: y.address(),
        qkv: qkv.address(),
        plane: plane.address(),
        places: places.address(),
        page_table: page_table.address(),
        extents: extents.address(),
        partials: cuda.spans.partials.address() + (stack * room) as u64,
        arrivals: cuda.spans.arrivals.address() + (stack * MAX_MEETINGS as usize * 4) as u64,
        params,
        n_parts,
        n_rows: rows_of_block,
    };
    let grid = [n_rows.div_ceil(rows_of_block) * n_parts, shape.tiles(), shape.n_members];
    pass.launch(shape.kernel(), grid, &args, branch);
}

/// A launch of attention.
struct Shape {
    params: AttentionParams,
    /// The grid's bound.
    n_rows: u32,
    n_members: u32,
}

impl Shape {
    /// Blocks of a row, where one has all its keys.
    fn tiles(&self) -> u32 {
        let AttentionParams { n_heads, n_kv_heads, .. } = self.params;
        n_kv_heads * (n_heads / n_kv_heads).div_ceil(COLUMNS)
    }

    /// Chunks that the kernel for this width of a head has, and its place among those of a type.
    fn chunks(&self) -> (u32, usize) {
        let AttentionParams { page, head_dim, .. } = self.params;
        let is_wide = head_dim.is_multiple_of(8) && page.page_words.is_multiple_of(4);
        match head_dim.div_ceil(CHUNK) {
            1 if is_wide => (1, 0),
            2 if is_wide => (2, 1),
            _ => (4, if is_wide { 2 } else { 3 }),
        }
    }

    fn kernel(&self) -> &'static Kernel {
        &ATTENTION[4 * self.params.page.dtype as usize + self.chunks().1]
    }

    /// Rows that a block takes, to load the keys of a prompt's rows once for as many as fit beside each other. Rows of other
    /// sequences would come one after the other: where there can be but one row of each, a block has one.
    fn rows_of_block(&self) -> u32 {
        let AttentionParams { page, n_heads, n_kv_heads, .. } = self.params;
        let has_rows = page.dtype != Dtype::F32 as u32 && self.chunks().0 <= 2;
        if has_rows && self.n_rows > MAX_SLOTS as u32 { (COLUMNS / (n_heads / n_kv_heads)).max(1) } else { 1 }
    }

    /// Blocks that share the keys of a row: as many as there can be spans, while that does not make too many of them, and
    /// what they leave fits in `room` bytes. Blocks of many rows have all keys of theirs.
    fn n_parts(&self, room: usize) -> u32 {
        let PageParams { page_tokens, max_pages, .. } = self.params.page;
        let meetings = self.n_rows * self.tiles() * self.n_members;
        let partial = self.chunks().0 as usize * CHUNK_BYTES + SUMS_BYTES;
        let fits = meetings <= MAX_MEETINGS && meetings as usize * MAX_SPANS as usize * partial <= room;
        if self.rows_of_block() > 1 || !fits {
            return 1;
        }
        let most_blocks = (max_pages * page_tokens).div_ceil(KEY_BLOCK as u32);
        let mut n_parts = most_blocks.min(MAX_SPANS).next_power_of_two();
        while n_parts > 1 && meetings * n_parts > MANY_BLOCKS {
            n_parts /= 2;
        }
        n_parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(n_rows: u32, [n_heads, n_kv_heads, head_dim]: [u32; 3], max_pages: u32) -> Shape {
        let page = PageParams { page_words: 4096, page_tokens: 16, dtype: Dtype::Bf16 as u32, max_pages };
        let params = AttentionParams {
            page,
            cap: n_rows,
            n_heads,
            n_kv_heads,
            head_dim,
            scale: 1.0,
            softcap: 0.0,
            window: [0; MAX_MEMBERS],
        };
        Shape { params, n_rows, n_members: 1 }
    }

    #[test]
    fn blocks_share_keys_where_there_are_few_and_room() {
        let (qwen, llama) = ([28, 4, 128], [40, 40, 128]);
        for (rows, heads, max_pages, room, expected) in [
            (1, qwen, 2048, ROOM_BYTES, 32),
            (1, qwen, 9, ROOM_BYTES, 4),
            (1, qwen, 4, ROOM_BYTES, 1),
            (32, qwen, 2048, ROOM_BYTES, 16),
            (64, qwen, 2048, ROOM_BYTES, 1),
            (1, llama, 2048, ROOM_BYTES, 32),
            (4, llama, 2048, ROOM_BYTES, 8),
            (8, llama, 2048, ROOM_BYTES, 1),
            (8, llama, 2048, 2 * ROOM_BYTES, 4),
            (1, qwen, 2048, 0, 1),
            (2048, qwen, 2048, usize::MAX, 1),
        ] {
            assert_eq!(
                shape(rows, heads, max_pages).n_parts(room),
                expected,
                "{rows} rows of {heads:?}, {max_pages} pages"
            );
        }
    }

    #[test]
    fn every_shape_has_its_kernel() {
        for (head_dim, page_words, name) in [
            (8, 4096, "attention_bf16_64"),
            (64, 4096, "attention_bf16_64"),
            (80, 4096, "attention_bf16_128"),
            (160, 4096, "attention_bf16_256"),
            (256, 4096, "attention_bf16_256"),
            (20, 4096, "attention_bf16_any"),
            (64, 4098, "attention_bf16_any"),
        ] {
            let mut shape = shape(1, [1, 1, head_dim], 1);
            shape.params.page.page_words = page_words;
            assert_eq!(shape.kernel().name, name, "{head_dim} dims, {page_words} words");
        }
        assert_eq!(shape(1, [71, 1, 64], 1).tiles(), 9);
    }

    #[test]
    fn rows_of_prompts_share_keys_where_their_heads_fit() {
        for (rows, heads, expected) in [
            (128, [2, 2, 128], (8, 1)),
            (128, [8, 2, 128], (2, 1)),
            (128, [7, 1, 128], (1, 16)),
            (128, [9, 1, 128], (1, 1)),
            (128, [2, 2, 256], (1, 1)),
            (64, [2, 2, 128], (1, 16)),
        ] {
            let shape = shape(rows, heads, 2048);
            assert_eq!((shape.rows_of_block(), shape.n_parts(ROOM_BYTES)), expected, "{rows} rows of {heads:?}");
        }
    }
}
