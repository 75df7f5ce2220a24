// Three rows of logits to one id per sample, and the slot moved on: difference, masks, penalties, filters, draw. Order
// of operations: CombineSample in src/backend/mod.rs. Twin: src/backend/cpu/combine_sample.rs.
//
// slots [n_slots], scores [n_slots][2][32 * mask_words] bits of f32, counts [n_slots][32 * mask_words], base, expert
// and anti rows of a stride each, samples [n_samples]. Grid: parts of the ids, samples. One block: PART_IDS ids of a
// sample, four to a thread; the last block of a sample to arrive does what needs all of them. A step of greedy slots is
// the launch combine_sample; where some draw, draw follows it; where some filter, top_k and nucleus stand between, a
// launch per digit (select.cuh); base masks have base_peak and base_nucleus before. Blocks whose sample needs no such
// launch leave at once. combine_sample reads each row once and writes both scores; the others read one row.
#include "select.cuh"

// What one block found: the best key, and findings.
struct Found {
    u64 best;
    u32 findings;
    u32 reserved;
};

// What the blocks of one sample leave for each other and for later launches.
struct DrawScratch {
    Prefix prefix;
    Found parts[N_PARTS];
    // The highest score: of the base while its mask is made, then after step 6.
    float best;
    u32 reserved;
};
static_assert(sizeof(DrawScratch) == DRAW_SCRATCH_BYTES, "src/backend/cuda/draw.rs allocates it");

struct CombineSampleArgs {
    Slot* slots;
    u32* scores;
    u32* counts;
    const u32* base;
    const u32* expert;
    const u32* anti;
    const Sample* samples;
    const u32* constraints;
    DrawScratch* scratch;
    CombineSampleParams params;
    // Of a launch that looks for one.
    u32 digit;
    u32 reserved;
};

struct FoundShared {
    u64 best[N_WARPS];
    u32 findings[N_WARPS];
    u32 is_last;
};

// Bits of findings.
constexpr u32 BAD = 1;
constexpr u32 FINITE_BASE = 2;
constexpr u32 FINITE_EXPERT = 4;
constexpr u32 FINITE_ANTI = 8;
constexpr u32 FINITE_SCORE = 16;
constexpr u32 ALL_FINITE = 30;

// One sample as its blocks see it.
struct Seat {
    Reads reads;
    Slot* slot;
    DrawScratch* scratch;
    // Scores after step 3, and those of later steps.
    u32* combined;
    u32* processed;
    u32* counts;
    const u32* constraints;
    // Of this thread, where it is below 8 * mask_words.
    u32 four;
    bool has_four;
};

DEVICE Seat seat_of(const CombineSampleArgs& args, const Sample& sample) {
    const u32 n_words = args.params.mask_words, four = blockIdx.x * THREADS + threadIdx.x;
    const u64 width = 32 * n_words;
    Slot* slot = args.slots + sample.slot;
    u32* combined = args.scores + 2 * sample.slot * width;
    return {reads_of(sample, slot),
            slot,
            args.scratch + blockIdx.y,
            combined,
            combined + width,
            args.counts + sample.slot * width,
            args.constraints + 2 * n_words + (u64)sample.slot * (2 * n_words + 2 * MAX_BIASES),
            four,
            four < 8 * n_words};
}

// What every launch begins with. False where the block has no sample: grids are bounds.
DEVICE bool takes_seat(const CombineSampleArgs& args, Seat& seat) {
    wait_for_earlier();
    let_next_start();
    const Sample sample = args.samples[blockIdx.y];
    if (sample.slot == NO_SLOT) {
        return false;
    }
    seat = seat_of(args, sample);
    return true;
}

DEVICE bool has_base_mask(const Slot* slot) { return slot->base_top_p != 0 || slot->base_min_p != 0.0f; }

// NaN or +inf.
DEVICE bool is_bad(u32 bits) { return (bits & 0x7fffffffu) >= POS_INF && bits != NEG_INF; }

DEVICE u32 any_of_block(u32 bits, u32 (&warps)[N_WARPS]) {
    return over_block(bits, warps, [](u32 a, u32 b) { return a | b; });
}

// Adds up what all blocks of the sample found; true in the last of them, which has the whole.
DEVICE bool found_all(DrawScratch* scratch, u64& best, u32& findings, FoundShared& shared) {
    best = best_of_block(best, shared.best);
    findings = any_of_block(findings, shared.findings);
    if (threadIdx.x == 0) {
        scratch->parts[blockIdx.x] = {best, findings, 0};
    }
    if (!arrives_last(&scratch->prefix.arrived, gridDim.x, &shared.is_last)) {
        return false;
    }
    for (u32 part = threadIdx.x; part < gridDim.x; part += THREADS) {
        best = higher(best, scratch->parts[part].best);
        findings |= scratch->parts[part].findings;
    }
    best = best_of_block(best, shared.best);
    findings = any_of_block(findings, shared.findings);
    return true;
}

// t = (s - best) * scale of a four of scores.
DEVICE Four relative_to(const Four& scores, float best, float scale) {
    Four t;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 bits = scores.bits[i];
        t.bits[i] = bits == NEG_INF ? NEG_INF : bits_of((float_of(bits) - best) * scale);
    }
    return t;
}

// The base's scores that its own filters look at. What is bad ends the sequence in step 3.
DEVICE Four masked_base(const CombineSampleArgs& args, const Seat& seat) {
    const u32 live = live_ids(args, seat.four);
    Four z = base_four(args, seat.reads, seat.four);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        z.bits[i] = (live >> i & 1) != 0 && !is_bad(z.bits[i]) ? z.bits[i] : NEG_INF;
    }
    return z;
}

DEVICE u64 best_of_four(const Four& scores, u32 four) {
    u64 best = 0;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        best = higher(best, scores.bits[i] == NEG_INF ? 0 : key_of(scores.bits[i], 4 * four + i));
    }
    return best;
}

// Whether a filter keeps an id with such a t.
DEVICE bool is_kept(u32 t_bits, u32 id, u64 end, float min_p) {
    return t_bits != NEG_INF && place_of(t_bits, id) <= end &&
           (min_p == 0.0f || exp_nonpositive(float_of(t_bits)) >= min_p);
}

// Step 3 for an id that is live and has a base score: z + alpha (up - down), alpha > 0. Where the pair agrees (on -inf
// too) the base's bits stay.
DEVICE u32 steered(u32 z, u32 up, u32 down, float alpha) {
    const float to = float_of(up), from = float_of(down);
    return to == from ? z : bits_of(fmaf(alpha, to - from, float_of(z)));
}

// Steps 1, 3 and the masks of 4 for a four: the scores after step 3, and with the masks on them. Returns findings.
DEVICE u32 combine(const CombineSampleArgs& args, const Seat& seat, Four& combined, Four& s) {
    const Reads& reads = seat.reads;
    const float alpha = seat.slot->alpha;
    const bool has_mask = has_base_mask(seat.slot);
    const u64 end = has_mask ? seat.scratch->prefix.end : NO_END;
    const float best = has_mask ? seat.scratch->best : 0.0f, min_p = seat.slot->base_min_p;
    const u32 n_words = args.params.mask_words, four = seat.four;
    const Four z = base_four(args, reads, four);
    const Four e = reads.has_pair ? expert_four(args, reads, four) : z;
    const Four a = reads.has_pair ? anti_four(args, reads, four) : z;
    const u32 live = live_ids(args, four), zero_delta = four_in_mask(args.constraints + n_words, four);
    const u32 allowed = four_in_mask(seat.constraints + (seat.slot->produced == 0 ? n_words : 0), four);
    u32 found = 0;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 zi = z.bits[i], ei = e.bits[i], ai = a.bits[i];
        const bool is_live = (live >> i & 1) != 0;
        if (is_live) {
            found |= is_bad(zi) || is_bad(ei) || is_bad(ai) ? BAD : 0;
            found |= zi != NEG_INF ? FINITE_BASE : 0;
            found |= ei != NEG_INF ? FINITE_EXPERT : 0;
            found |= ai != NEG_INF ? FINITE_ANTI : 0;
        }
        const bool in_mask = !has_mask || is_kept(bits_of(float_of(zi) - best), 4 * four + i, end, min_p);
        u32 score = NEG_INF;
        if (is_live && zi != NEG_INF && in_mask) {
            // A negative alpha exchanges the two; the product's bits are the same.
            const u32 up = alpha < 0.0f ? ai : ei, down = alpha < 0.0f ? ei : ai;
            score = (zero_delta >> i & 1) != 0 ? zi : steered(zi, up, down, fabsf(alpha));
            found |= is_bad(score) ? BAD : 0;
            found |= score != NEG_INF ? FINITE_SCORE : 0;
        }
        combined.bits[i] = score;
        s.bits[i] = (allowed >> i & 1) != 0 ? score : NEG_INF;
    }
    return found;
}

// The rest of step 4, and step 5: what only few ids have.
DEVICE void narrow(const Seat& seat, u32 n_words, Four& s) {
    const Slot* slot = seat.slot;
    const u32 n_stop_ids = slot->produced < slot->min_tokens ? slot->n_stop_ids : 0, first = 4 * seat.four;
    for (u32 stop = 0; stop < n_stop_ids; stop++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            s.bits[i] = slot->stop_ids[stop] == first + i ? NEG_INF : s.bits[i];
        }
    }
    // Pairs of an id and a bias, in order of ids: those of this four are next to each other.
    const u32* biases = seat.constraints + 2 * n_words;
    const u32 n_biases = slot->n_biases;
    u32 at = 0;
    for (u32 n = n_biases; n > 0;) {
        const u32 half = n / 2;
        const bool is_below = biases[2 * (at + half)] < first;
        at += is_below ? half + 1 : 0;
        n = is_below ? n - half - 1 : half;
    }
    for (; at < n_biases && biases[2 * at] < first + 4; at++) {
        const float bias = float_of(biases[2 * at + 1]);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const bool is_biased = biases[2 * at] == first + i && s.bits[i] != NEG_INF;
            s.bits[i] = is_biased ? bits_of(float_of(s.bits[i]) + bias) : s.bits[i];
        }
    }
}

// Step 6.
DEVICE void penalise(const Seat& seat, Four& s) {
    const Slot* slot = seat.slot;
    const Four counts = load_four(seat.counts, seat.four);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 count = counts.bits[i], n = count & 0x7fffffffu;
        if (count == 0 || s.bits[i] == NEG_INF) {
            continue;
        }
        float score = float_of(s.bits[i]);
        score = score > 0.0f ? score / slot->repetition_penalty : score * slot->repetition_penalty;
        if (n > 0) {
            score = fmaf(-slot->frequency_penalty, (float)n, score - slot->presence_penalty);
        }
        s.bits[i] = bits_of(score);
    }
}

// One thread of the sample's last block. All is read before anything is written: no load waits for a store.
DEVICE void advance(const Seat& seat, u32 id) {
    Slot* slot = seat.slot;
    const u32 produced = slot->produced, n_stop_ids = slot->n_stop_ids;
    const bool penalised = slot->penalised == 1;
    const u32 count = penalised ? seat.counts[id] : 0;
    u32 lengths[N_LANES];
#pragma unroll
    for (u32 lane = 0; lane < N_LANES; lane++) {
        lengths[lane] = slot->lengths[lane];
    }
    u32 finish = produced + 1 == slot->max_tokens ? LENGTH : RUNNING;
    for (u32 i = 0; i < n_stop_ids; i++) {
        finish = slot->stop_ids[i] == id ? STOP : finish;
    }
    slot->drew = 1;
    slot->last_id = id;
    slot->ring[produced % RING] = id;
    slot->produced = produced + 1;
    slot->finish = finish;
#pragma unroll
    for (u32 lane = 0; lane < N_LANES; lane++) {
        slot->lengths[lane] = lengths[lane] + 1;
    }
    if (penalised) {
        seat.counts[id] = count + 1;
    }
}

// One thread of the sample's last block, after step 6.
DEVICE void conclude(const Seat& seat, u64 best, u32 findings) {
    Slot* slot = seat.slot;
    const bool is_numeric = findings != ALL_FINITE || ordered_of(best) >= ordered_bits(float_of(POS_INF));
    if (!is_numeric && best != 0 && slot->inverse_temperature == 0.0f) {
        advance(seat, id_of(best));
        return;
    }
    slot->drew = 0;
    if (is_numeric || best == 0) {
        slot->finish = is_numeric ? NUMERIC : EMPTY;
        return;
    }
    seat.scratch->best = from_ordered(ordered_of(best));
    begin(&seat.scratch->prefix);
}

// Step 2: the highest score of the base.
extern "C" __global__ void __launch_bounds__(THREADS) base_peak(const CombineSampleArgs args) {
    SHARED(FoundShared, shared);
    Seat seat;
    if (!takes_seat(args, seat) || seat.slot->finish != RUNNING || !has_base_mask(seat.slot)) {
        return;
    }
    u64 best = best_of_four(masked_base(args, seat), seat.four);
    u32 findings = 0;
    if (found_all(seat.scratch, best, findings, shared) && threadIdx.x == 0) {
        // Without a finite score nothing is found in what follows, and step 3 ends the sequence.
        seat.scratch->best = from_ordered(ordered_of(best));
        begin(&seat.scratch->prefix);
    }
}

// Step 2: one digit of the end of the base's nucleus.
extern "C" __global__ void __launch_bounds__(THREADS) base_nucleus(const CombineSampleArgs args) {
    SHARED(SelectShared, shared);
    Seat seat;
    if (!takes_seat(args, seat)) {
        return;
    }
    const u32 top_p = seat.slot->base_top_p;
    if (seat.slot->finish != RUNNING || top_p == 0) {
        return;
    }
    const Four t = relative_to(masked_base(args, seat), seat.scratch->best, 1.0f);
    find_digit(&seat.scratch->prefix, t, seat.four, args.digit, {true, top_p}, shared);
}

// Steps 1 to 7, and the draw where it is greedy.
extern "C" __global__ void __launch_bounds__(THREADS) combine_sample(const CombineSampleArgs args) {
    SHARED(FoundShared, shared);
    Seat seat;
    if (!takes_seat(args, seat)) {
        return;
    }
    if (seat.slot->finish != RUNNING) {
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            seat.slot->drew = 0;
        }
        return;
    }
    u64 best = 0;
    u32 findings = 0;
    if (seat.has_four) {
        Four combined, s;
        findings = combine(args, seat, combined, s);
        narrow(seat, args.params.mask_words, s);
        if (seat.slot->penalised == 1) {
            penalise(seat, s);
        }
        store_four(seat.combined, seat.four, combined);
        store_four(seat.processed, seat.four, s);
        best = best_of_four(s, seat.four);
    }
    if (found_all(seat.scratch, best, findings, shared) && threadIdx.x == 0) {
        conclude(seat, best, findings);
    }
}

// The scores that the filters look at, where the slot draws.
DEVICE Four processed_t(const Seat& seat) {
    const Four scores = seat.has_four ? load_four(seat.processed, seat.four) : four_of(NEG_INF);
    return relative_to(scores, seat.scratch->best, seat.slot->inverse_temperature);
}

DEVICE bool draws(const Slot* slot) { return slot->finish == RUNNING && slot->inverse_temperature != 0.0f; }

// Step 8: one digit of the end of the best top_k.
extern "C" __global__ void __launch_bounds__(THREADS) top_k(const CombineSampleArgs args) {
    SHARED(SelectShared, shared);
    Seat seat;
    if (!takes_seat(args, seat)) {
        return;
    }
    const u32 k = seat.slot->top_k;
    if (!draws(seat.slot) || k == 0 || k >= args.params.n_ids) {
        return;
    }
    find_digit(&seat.scratch->prefix, processed_t(seat), seat.four, args.digit, {false, k}, shared);
}

// Step 8: one digit of the end of the nucleus of what top_k left.
extern "C" __global__ void __launch_bounds__(THREADS) nucleus(const CombineSampleArgs args) {
    SHARED(SelectShared, shared);
    Seat seat;
    if (!takes_seat(args, seat)) {
        return;
    }
    const u32 top_p = seat.slot->top_p;
    if (!draws(seat.slot) || top_p == 0) {
        return;
    }
    find_digit(&seat.scratch->prefix, processed_t(seat), seat.four, args.digit, {true, top_p}, shared);
}

// Steps 7 to 9 where the slot draws: writes t, and -inf where a filter drops an id.
extern "C" __global__ void __launch_bounds__(THREADS) draw(const CombineSampleArgs args) {
    SHARED(FoundShared, shared);
    Seat seat;
    if (!takes_seat(args, seat) || !draws(seat.slot)) {
        return;
    }
    const Slot* slot = seat.slot;
    Four t = processed_t(seat);
    const Four x = four_of(philox({seat.four, slot->produced, slot->sample_index, 0}, slot->seed[0], slot->seed[1]));
    const u64 end = seat.scratch->prefix.end;
    const float min_p = slot->min_p;
    u64 best = 0;
    u32 findings = 0;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 id = 4 * seat.four + i;
        if (is_kept(t.bits[i], id, end, min_p)) {
            best = higher(best, key_of(bits_of(float_of(t.bits[i]) + gumbel(x.bits[i])), id));
        } else {
            t.bits[i] = NEG_INF;
        }
    }
    if (seat.has_four) {
        store_four(seat.processed, seat.four, t);
    }
    if (found_all(seat.scratch, best, findings, shared) && threadIdx.x == 0) {
        advance(seat, id_of(best));
    }
}
