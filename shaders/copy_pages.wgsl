// plane[to] = plane[from], page by page.
//
// plane [n_pages][page_words], copies [n_copies] of (from, to). One workgroup: up to COPY_WORDS words of one page. No page is read and
// written in one launch, so the order of workgroups does not matter. Reads and writes page_words words per copy.

@group(0) @binding(0) var<storage, read_write> plane: array<u32>;
@group(0) @binding(1) var<storage, read> copies: array<vec2<u32>>;
@group(0) @binding(2) var<uniform> params: CopyPagesParams;

struct CopyPagesParams {
    page_words: u32,
    reserved_0: u32,
    reserved_1: u32,
    reserved_2: u32,
}

const N_THREADS = 64u;

@compute @workgroup_size(N_THREADS)
fn main(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let starts = params.page_words * copies[tile.y];
    let end = min((tile.x + 1u) * COPY_WORDS, params.page_words);
    for (var word = tile.x * COPY_WORDS + thread; word < end; word += N_THREADS) {
        plane[starts.y + word] = plane[starts.x + word];
    }
}
