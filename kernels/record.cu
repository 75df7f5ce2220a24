// What a step looked like under the base, the expert, the anti-expert and combined: StepRecord in params.rs. Runs after
// combine_sample in the same pass. Twin: src/backend/cpu/record.rs.
//
// records and slots [n_slots], scores [n_slots][2][32 * mask_words] bits of f32, base, expert and anti rows of a stride
// each, samples [n_samples]. Grid: parts of the ids, samples. One block: PART_IDS ids of a sample, four to a thread.
// Two launches, and in each the last block of a sample to arrive puts together what all found: record_peaks the maxima
// and the top entries, record_sums the figures. Sums have one order: a thread's four, lanes by halves, warps in order,
// parts by 16 threads, each every 16th in order, and these in order. Each launch reads the four rows once.
#include "ids.cuh"

constexpr u32 BASE = 0;
constexpr u32 EXPERT = 1;
constexpr u32 ANTI = 2;
constexpr u32 COMBINED = 3;
constexpr u32 N_ROWS = 4;

// Sums over ids, with t = z - highest of a row and e = e^t:
constexpr u32 E = 0;               // e of each row,
constexpr u32 E_T = 4;             // e t of each row,
constexpr u32 BEFORE = 8;          // ids before the chosen one in each row, exact below 2^24,
constexpr u32 COMBINED_BASE = 12;  // e (t - t of the base) of the combined row,
constexpr u32 EXPERT_ANTI = 13;    // e (t - t of the anti-expert) of the expert's,
constexpr u32 CROSS = 14;          // e (t of the anti-expert) of the expert's.
constexpr u32 N_SUMS = 16;
static_assert(MAX_VOCAB < 1u << 24, "counts are exact as f32");

// What the block of a part found.
struct PartRecord {
    // Key of the highest of each row.
    u64 peaks[N_ROWS];
    // Keys of the best ids of the combined row, best first, then 0.
    u64 top[MAX_RECORD_TOP];
    float sums[N_SUMS];
};

// What the blocks of one sample leave for each other.
struct RecordScratch {
    // Key of the highest of each row.
    u64 peaks[N_ROWS];
    // Blocks that have arrived; 0 between launches.
    u32 arrived;
    u32 reserved[3];
    PartRecord parts[N_PARTS];
};
static_assert(sizeof(RecordScratch) == RECORD_SCRATCH_BYTES, "src/backend/cuda/draw.rs allocates it");

struct RecordArgs {
    StepRecord* records;
    const Slot* slots;
    const u32* scores;
    const u32* base;
    const u32* expert;
    const u32* anti;
    const Sample* samples;
    const u32* constraints;
    RecordScratch* scratch;
    RecordParams params;
};

struct PeaksShared {
    u64 best[N_WARPS];
    u32 is_last;
};

// Threads that add up one of the sums of all parts.
constexpr u32 N_GROUPS = THREADS / N_SUMS;
static_assert(N_WARPS <= N_GROUPS, "warps leave their sums where groups do");

struct SumsShared {
    float sums[N_GROUPS][N_SUMS];
    float totals[N_SUMS];
    u32 is_last;
};

// A four of each row, -inf where an id is not live.
struct Rows {
    Four z[N_ROWS];
    u32 live;
};

DEVICE const u32* combined_row(const RecordArgs& args, const Reads& reads) {
    return args.scores + 2 * (u64)reads.sample.slot * 32 * args.params.mask_words;
}

DEVICE Rows load_rows(const RecordArgs& args, const Reads& reads, u32 four) {
    Rows rows;
    rows.live = live_ids(args, four);
    rows.z[BASE] = base_four(args, reads, four);
    rows.z[EXPERT] = reads.has_pair ? expert_four(args, reads, four) : rows.z[BASE];
    rows.z[ANTI] = reads.has_pair ? anti_four(args, reads, four) : rows.z[BASE];
    rows.z[COMBINED] = 4 * four < args.params.n_ids ? load_four(combined_row(args, reads), four) : four_of(NEG_INF);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
#pragma unroll
        for (u32 row = 0; row < N_ROWS; row++) {
            rows.z[row].bits[i] = (rows.live >> i & 1) != 0 ? rows.z[row].bits[i] : NEG_INF;
        }
    }
    return rows;
}

// The column of one live id.
struct Column {
    float z[N_ROWS];
};

DEVICE Column column(const RecordArgs& args, const Reads& reads, u32 id) {
    const u32* strides = args.params.strides;
    const u64 base_row = (u64)reads.sample.row_base * strides[0];
    const u64 expert_row = (u64)reads.sample.row_expert * strides[1];
    const u32 z = reads.is_expert_only ? args.expert[expert_row + id] : args.base[base_row + id];
    const u32 e = reads.has_pair ? args.expert[expert_row + id] : z;
    const u32 a = reads.has_pair ? args.anti[(u64)reads.sample.row_anti * strides[2] + id] : z;
    return {{float_of(z), float_of(e), float_of(a), float_of(combined_row(args, reads)[id])}};
}

// This thread's best key below `last` in the lists of its parts.
DEVICE u64 best_below(const PartRecord* parts, u32 n_top, u64 last) {
    u64 best = 0;
    for (u32 part = threadIdx.x; part < gridDim.x; part += THREADS) {
        u32 at = 0;
        while (at < n_top && parts[part].top[at] >= last) {
            at++;
        }
        best = at < n_top ? higher(best, parts[part].top[at]) : best;
    }
    return best;
}

// The key of the highest live id of a four, in a row.
DEVICE u64 peak_of(const Rows& rows, u32 row, u32 four) {
    u64 best = 0;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        best = higher(best, (rows.live >> i & 1) != 0 ? key_of(rows.z[row].bits[i], 4 * four + i) : 0);
    }
    return best;
}

// The n_top best ids of this block's part, best first.
DEVICE void leave_top(PartRecord* part, const Four& combined, u32 four, u32 n_top, PeaksShared& shared) {
    u64 last = ~0ull;
    for (u32 entry = 0; entry < n_top; entry++) {
        u64 best = 0;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u64 key = combined.bits[i] == NEG_INF ? 0 : key_of(combined.bits[i], 4 * four + i);
            best = key < last ? higher(best, key) : best;
        }
        last = best_of_block(best, shared.best);
        if (threadIdx.x == 0) {
            part->top[entry] = last;
        }
    }
}

// By the last block: the best ids of all parts.
DEVICE void write_top(const RecordArgs& args, const Reads& reads, const PartRecord* parts, PeaksShared& shared) {
    StepRecord* record = args.records + reads.sample.slot;
    const u32 n_top = args.params.n_top;
    u64 own = best_below(parts, n_top, ~0ull);
    u32 n = 0;
    for (u32 entry = 0; entry < MAX_RECORD_TOP; entry++) {
        const u64 best = entry < n_top ? best_of_block(own, shared.best) : 0;
        n += best != 0 ? 1 : 0;
        if (threadIdx.x == 0) {
            TopEntry top = {0, 0.0f, 0.0f, 0.0f, 0.0f};
            if (best != 0) {
                const Column of_id = column(args, reads, id_of(best));
                top = {id_of(best), of_id.z[BASE], of_id.z[EXPERT], of_id.z[ANTI], of_id.z[COMBINED]};
            }
            record->top[entry] = top;
        }
        if (best != 0 && best == own) {
            own = best_below(parts, n_top, best);
        }
    }
    if (threadIdx.x == 0) {
        record->n_top = n;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) record_peaks(const RecordArgs args) {
    SHARED(PeaksShared, shared);
    wait_for_earlier();
    let_next_start();
    const Sample sample = args.samples[blockIdx.y];
    if (sample.slot == NO_SLOT || args.slots[sample.slot].drew == 0) {
        return;
    }
    const Reads reads = reads_of(sample, args.slots + sample.slot);
    RecordScratch* scratch = args.scratch + blockIdx.y;
    PartRecord* part = scratch->parts + blockIdx.x;
    const u32 four = blockIdx.x * THREADS + threadIdx.x;
    const Rows rows = load_rows(args, reads, four);
#pragma unroll
    for (u32 row = 0; row < N_ROWS; row++) {
        const u64 best = best_of_block(peak_of(rows, row, four), shared.best);
        if (threadIdx.x == 0) {
            part->peaks[row] = best;
        }
    }
    leave_top(part, rows.z[COMBINED], four, args.params.n_top, shared);
    if (!arrives_last(&scratch->arrived, gridDim.x, &shared.is_last)) {
        return;
    }
    for (u32 row = 0; row < N_ROWS; row++) {
        u64 best = 0;
        for (u32 at = threadIdx.x; at < gridDim.x; at += THREADS) {
            best = higher(best, scratch->parts[at].peaks[row]);
        }
        best = best_of_block(best, shared.best);
        if (threadIdx.x == 0) {
            scratch->peaks[row] = best;
        }
    }
    if (threadIdx.x == 0) {
        args.records[sample.slot].base_argmax = id_of(scratch->peaks[BASE]);
        args.records[sample.slot].combined_argmax = id_of(scratch->peaks[COMBINED]);
    }
    write_top(args, reads, scratch->parts, shared);
}

// p x with 0 * inf = 0.
DEVICE float times(float p, float x) { return p == 0.0f ? 0.0f : p * x; }

struct Sums {
    float of[N_SUMS];
};

// The sums of one thread's ids.
DEVICE Sums sums_of(const Rows& rows, u32 first, const float (&highest)[N_ROWS], u32 chosen, const Column& of_chosen) {
    Sums sums;
#pragma unroll
    for (u32 sum = 0; sum < N_SUMS; sum++) {
        sums.of[sum] = 0.0f;
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 id = first + i;
        const bool is_live = (rows.live >> i & 1) != 0;
        float t[N_ROWS], e[N_ROWS];
#pragma unroll
        for (u32 row = 0; row < N_ROWS; row++) {
            const float z = float_of(rows.z[row].bits[i]);
            t[row] = z - highest[row];
            e[row] = exp_nonpositive(t[row]);
            sums.of[E + row] += e[row];
            sums.of[E_T + row] += times(e[row], t[row]);
            const bool is_before = z > of_chosen.z[row] || (z == of_chosen.z[row] && id < chosen);
            sums.of[BEFORE + row] += is_live && is_before ? 1.0f : 0.0f;
        }
        sums.of[COMBINED_BASE] += times(e[COMBINED], t[COMBINED] - t[BASE]);
        sums.of[EXPERT_ANTI] += times(e[EXPERT], t[EXPERT] - t[ANTI]);
        sums.of[CROSS] += times(e[EXPERT], t[ANTI]);
    }
    return sums;
}

// Leaves the figures of the whole sums; one thread.
DEVICE void write_figures(const Slot* slot, const Column& of_chosen, const float (&highest)[N_ROWS],
                          const float (&sums)[N_SUMS], StepRecord* record) {
    float ln_sum[N_ROWS];
#pragma unroll
    for (u32 row = 0; row < N_ROWS; row++) {
        ln_sum[row] = ln(sums[E + row]);
        record->logprob[row] = of_chosen.z[row] - highest[row] - ln_sum[row];
        record->rank[row] = (u32)sums[BEFORE + row];
        record->entropy[row] = ln_sum[row] - sums[E_T + row] / sums[E + row];
    }
    record->position = slot->produced - 1;
    record->chosen = slot->last_id;
    record->kl_combined_base = sums[COMBINED_BASE] / sums[E + COMBINED] - ln_sum[COMBINED] + ln_sum[BASE];
    record->kl_expert_anti = sums[EXPERT_ANTI] / sums[E + EXPERT] - ln_sum[EXPERT] + ln_sum[ANTI];
    record->cross_entropy = ln_sum[ANTI] - sums[CROSS] / sums[E + EXPERT];
    record->alpha = slot->alpha;
    for (u32 i = 0; i < 3; i++) {
        record->reserved[i] = 0;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) record_sums(const RecordArgs args) {
    SHARED(SumsShared, shared);
    wait_for_earlier();
    let_next_start();
    const Sample sample = args.samples[blockIdx.y];
    if (sample.slot == NO_SLOT || args.slots[sample.slot].drew == 0) {
        return;
    }
    const Slot* slot = args.slots + sample.slot;
    const Reads reads = reads_of(sample, slot);
    RecordScratch* scratch = args.scratch + blockIdx.y;
    const u32 four = blockIdx.x * THREADS + threadIdx.x, lane = threadIdx.x % WARP;
    float highest[N_ROWS];
#pragma unroll
    for (u32 row = 0; row < N_ROWS; row++) {
        highest[row] = from_ordered(ordered_of(scratch->peaks[row]));
    }
    const Column of_chosen = column(args, reads, slot->last_id);
    const Sums own = sums_of(load_rows(args, reads, four), 4 * four, highest, slot->last_id, of_chosen);
#pragma unroll
    for (u32 sum = 0; sum < N_SUMS; sum++) {
        const float of_warp = sum_of_lanes(own.of[sum]);
        if (lane == 0) {
            shared.sums[threadIdx.x / WARP][sum] = of_warp;
        }
    }
    sync_block();
    if (threadIdx.x < N_SUMS) {
        float of_part = 0.0f;
        for (u32 warp = 0; warp < N_WARPS; warp++) {
            of_part += shared.sums[warp][threadIdx.x];
        }
        scratch->parts[blockIdx.x].sums[threadIdx.x] = of_part;
    }
    if (!arrives_last(&scratch->arrived, gridDim.x, &shared.is_last)) {
        return;
    }
    const u32 sum = threadIdx.x % N_SUMS, group = threadIdx.x / N_SUMS;
    float of_group = 0.0f;
    for (u32 part = group; part < gridDim.x; part += N_GROUPS) {
        of_group += scratch->parts[part].sums[sum];
    }
    shared.sums[group][sum] = of_group;
    sync_block();
    if (threadIdx.x < N_SUMS) {
        float total = 0.0f;
        for (u32 at = 0; at < N_GROUPS; at++) {
            total += shared.sums[at][threadIdx.x];
        }
        shared.totals[threadIdx.x] = total;
    }
    sync_block();
    if (threadIdx.x == 0) {
        write_figures(slot, of_chosen, highest, shared.totals, args.records + sample.slot);
    }
}
