// What every shader shares. A module is put together by src/backend/wgpu/pipelines.rs, in this order:
// `const` lines from params.rs and math.rs, then `const` lines of the variant, the declarations of its weights,
// common.wgsl, math.wgsl, the parts that the op names (matmul.wgsl, ...), STEM.wgsl.
//
// Convention of bindings: all in @group(0), numbered in the order of the fields of the op's struct in
// src/backend/mod.rs: outputs, inputs, params. Buffers are var<storage>, read_write where the field says "Out" or
// "In and out", else read. `params` is var<uniform>, its struct stands in STEM.wgsl and mirrors params.rs field by
// field (an array of two is a vec2; longer ones are written out, because a uniform array has a stride of 16).
// An optional buffer keeps its number; where it is absent a small unused buffer is bound and `const HAS_NAME` is
// false. n_rows and n_samples are not bound: they are the grid. Ops with a matrix have a second uniform, `part`.
// The entry point is `main`. Records are mirrored here by name; a test compares all of them with the Rust structs.

struct Row {
    slot: u32,
    lane: u32,
    token: u32,
    position: u32,
}

struct Place {
    table: u32,
    position: u32,
    live: u32,
    token: u32,
}

struct Extent {
    n_rows: u32,
    n_logits: u32,
}

struct Slot {
    last_id: u32,
    produced: u32,
    finish: u32,
    max_tokens: u32,
    lengths: array<u32, N_LANES>,
    min_tokens: u32,
    n_stop_ids: u32,
    n_biases: u32,
    penalised: u32,
    alpha: f32,
    inverse_temperature: f32,
    top_k: u32,
    top_p: u32,
    min_p: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    base_top_p: u32,
    base_min_p: f32,
    seed: array<u32, 2>,
    sample_index: u32,
    drew: u32,
    expert_only: u32,
    reserved: array<u32, 2>,
    stop_ids: array<u32, MAX_STOP_IDS>,
    ring: array<u32, RING>,
}

struct Sample {
    slot: u32,
    row_base: u32,
    row_expert: u32,
    row_anti: u32,
}

struct PageParams {
    page_words: u32,
    page_tokens: u32,
    dtype: u32,
    max_pages: u32,
}

// The output rows of one dispatch over a matrix, see src/backend/wgpu/memory.rs.
struct Part {
    first: u32,
    n_rows: u32,
    offset: u32,
    stride: u32,
    second_offset: u32,
    second_stride: u32,
    reserved_0: u32,
    reserved_1: u32,
}
