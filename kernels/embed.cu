// places[r] = resolve(rows[r]); x[r] = scale * table[token], 0 where the slot has finished or the token is past the
// table.
//
// x [members * cap][d_model] f32, places and rows [members * cap], table [members] of matrices in tiles (matrix.rs).
// One block: one row of one member; grid (rows, 1, members). A thread takes every THREADS-th pair of columns, which is
// 4 bytes of a tile of 16-bit weights, 8 of one of f32. One product per element. Reads and writes d_model elements per
// row.
#include "common.cuh"

struct EmbedArgs {
    float* x;
    Place* places;
    const void* table;
    const Row* rows;
    const Slot* slots;
    const Extent* extents;
    EmbedParams params;
    u64 member_bytes;
    u32 n_vocab;
    u32 reserved;
};

constexpr u32 THREADS = 128;

DEVICE Place resolve(const Row row, const Slot* slots, u32 max_pages) {
    const Slot& slot = slots[row.slot];
    Place place;
    place.table = (row.slot * N_LANES + row.lane) * max_pages;
    place.position = row.position == FROM_SLOT ? slot.lengths[row.lane] : row.position;
    place.live = slot.finish == RUNNING;
    place.token = row.token == FROM_SLOT ? slot.last_id : row.token;
    return place;
}

template <u32 DTYPE>
DEVICE void embed(const EmbedArgs& args) {
    wait_for_earlier();
    let_next_start();
    const EmbedParams& params = args.params;
    const u32 member = blockIdx.z;
    if (blockIdx.x >= args.extents[member].n_rows) {
        return;
    }
    const u32 row = member * params.cap + blockIdx.x;
    const Place place = resolve(args.rows[row], args.slots, params.max_pages);
    if (threadIdx.x == 0) {
        args.places[row] = place;
    }
    const bool known = place.live == 1 && place.token < args.n_vocab;
    const void* table = static_cast<const u8*>(args.table) + member * args.member_bytes;
    float2* x = reinterpret_cast<float2*>(args.x + (u64)row * params.d_model);
    const float scale = of_member(params.scale, member);
    for (u32 pair = threadIdx.x; pair < params.d_model / 2; pair += THREADS) {
        float2 value = {0.0f, 0.0f};
        if (known) {
            const float2 weights = pair_of_weights<DTYPE>(table, params.d_model, place.token, pair);
            value = {scale * weights.x, scale * weights.y};
        }
        x[pair] = value;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) embed_f32(const EmbedArgs args) { embed<F32>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) embed_f16(const EmbedArgs args) { embed<F16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) embed_bf16(const EmbedArgs args) { embed<BF16>(args); }
