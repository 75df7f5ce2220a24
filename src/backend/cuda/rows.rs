//! Plans of the ops that move rows and pages: embed, norm_add, copy_pages.

use super::kernels::Kernel;
use super::*;
use bytemuck::{Pod, Zeroable};

/// copy_pages' argument.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CopyPagesArgs {
    plane: u64,
    copies: u64,
    params: CopyPagesParams,
}

/// embed's argument.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EmbedArgs {
    x: u64,
    places: u64,
    table: u64,
    rows: u64,
    slots: u64,
    extents: u64,
    params: EmbedParams,
    /// Bytes from one member's table to the next.
    member_bytes: u64,
    /// Rows of the table: a token at or past them embeds as zero.
    n_vocab: u32,
    reserved: u32,
}

/// norm_add's argument.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormAddArgs {
    x: u64,
    y: u64,
    gain: u64,
    extents: u64,
    params: NormAddParams,
}

pub(super) static COPY_PAGES: &[Kernel] = &[Kernel {
    stem: "copy_pages",
    name: "copy_pages",
    threads: 256,
    args: "CopyPagesArgs",
    args_bytes: size_of::<CopyPagesArgs>(),
}];
/// By the dtype's number.
pub(super) static EMBED: &[Kernel] =
    &[embed_kernel("embed_f32"), embed_kernel("embed_f16"), embed_kernel("embed_bf16")];
pub(super) static NORM_ADD: &[Kernel] = &[Kernel {
    stem: "norm_add",
    name: "norm_add",
    threads: 256,
    args: "NormAddArgs",
    args_bytes: size_of::<NormAddArgs>(),
}];

const fn embed_kernel(name: &'static str) -> Kernel {
    Kernel { stem: "embed", name, threads: 128, args: "EmbedArgs", args_bytes: size_of::<EmbedArgs>() }
}

/// Words of a page that a block of copy_pages copies.
pub(super) const COPY_WORDS: u32 = 4096;

pub(super) fn copy_pages<D: Device>(pass: &mut Pass, op: CopyPages<'_, Cuda<D>>) {
    let CopyPages { plane, copies, n_copies, params } = op;
    let grid = [params.page_words.div_ceil(COPY_WORDS), n_copies, 1];
    let args = CopyPagesArgs { plane: plane.address(), copies: copies.address(), params };
    pass.step.is_rare = true;
    // Every stack's attention reads what is copied.
    pass.launch(&COPY_PAGES[0], grid, &args, Branch::All);
}

pub(super) fn embed<D: Device>(pass: &mut Pass, op: Embed<'_, Cuda<D>>) {
    let Embed { x, places, table, rows, slots, extents, n_rows, params } = op;
    pass.n_silent += i64::from(n_rows);
    let grid = [pass.bound(n_rows), 1, table.n_members as u32];
    let args = EmbedArgs {
        x: x.address(),
        places: places.address(),
        table: table.memory.address(),
        rows: rows.address(),
        slots: slots.address(),
        extents: extents.address(),
        params,
        member_bytes: table.member_bytes() as u64,
        n_vocab: table.spec.n_rows as u32,
        reserved: 0,
    };
    let branch = pass.branch_of(extents);
    pass.launch(&EMBED[table.spec.dtype as usize], grid, &args, branch);
}

pub(super) fn norm_add<D: Device>(pass: &mut Pass, op: NormAdd<'_, Cuda<D>>) {
    let NormAdd { x, y, gain, extents, n_rows, params } = op;
    let n_members = checks::members(y.bytes() / size_of::<f32>() / params.d_model as usize, params.cap);
    let grid = [pass.bound(n_rows), 1, n_members];
    let args = NormAddArgs { x: x.address(), y: y.address(), gain: gain.address(), extents: extents.address(), params };
    let branch = pass.branch_of(extents);
    pass.launch(&NORM_ADD[0], grid, &args, branch);
}
