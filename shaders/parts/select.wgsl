// top-k, top-p and min-p without a sort: the twin of src/backend/cpu/select.rs, for one workgroup.
//
// A place is where (t, id) stands from best to worst: 31 bits of depth below t = 0, then 19 bits of the id. A prefix of
// the places is found by five passes over ten bits each. Reads the processed scores once per pass; workgroup memory:
// 8 KiB of bins, 2 KiB of sums.

const N_BINS = 1024u;
const N_PASSES = 5u;

var<workgroup> bins_low: array<atomic<u32>, N_BINS>;
var<workgroup> bins_high: array<atomic<u32>, N_BINS>;
var<workgroup> sums: array<vec2<u32>, N_THREADS>;
// Bin, and what of the goal is left in it: (bin, low, high).
var<workgroup> reached: vec3<u32>;

// First four of the processed scores.
var<private> processed: u32;

// Bits below t = 0; bits are those of t <= 0.
fn depth(bits: u32) -> u32 {
    return 0x80000000u - ordered_bits(bits);
}

// Which bits of a place the passes before this one have fixed: of the depth, of the id.
fn fixed_bits(pass_index: u32) -> vec2<u32> {
    switch pass_index {
        case 0u: { return vec2(0u, 0u); }
        case 1u: { return vec2(0x7fe00000u, 0u); }
        case 2u: { return vec2(0x7ffff800u, 0u); }
        case 3u: { return vec2(0x7ffffffeu, 0u); }
        default: { return vec2(0x7fffffffu, 0x7fc00u); }
    }
}

fn digit(pass_index: u32, place: vec2<u32>) -> u32 {
    switch pass_index {
        case 0u: { return place.x >> 21u; }
        case 1u: { return (place.x >> 11u) & 0x3ffu; }
        case 2u: { return (place.x >> 1u) & 0x3ffu; }
        case 3u: { return ((place.x & 1u) << 9u) | (place.y >> 10u); }
        default: { return place.y & 0x3ffu; }
    }
}

fn from_digit(pass_index: u32, bin: u32) -> vec2<u32> {
    switch pass_index {
        case 0u: { return vec2(bin << 21u, 0u); }
        case 1u: { return vec2(bin << 11u, 0u); }
        case 2u: { return vec2(bin << 1u, 0u); }
        case 3u: { return vec2(bin >> 9u, (bin & 0x1ffu) << 10u); }
        default: { return vec2(0u, bin); }
    }
}

// Weights of the places that agree with `pivot` so far, by their next digit.
fn fill_bins(pass_index: u32, pivot: vec2<u32>, by_mass: bool) {
    for (var bin = thread; bin < N_BINS; bin += N_THREADS) {
        atomicStore(&bins_low[bin], 0u);
        atomicStore(&bins_high[bin], 0u);
    }
    workgroupBarrier();
    let fixed = fixed_bits(pass_index);
    for (var four = thread; 4u * four < params.n_ids; four += N_THREADS) {
        let four_bits = scores[processed + four];
        for (var i = 0u; i < 4u; i++) {
            let bits = four_bits[i];
            let place = vec2(depth(bits), 4u * four + i);
            if bits == NEG_INF || any((place & fixed) != pivot) {
                continue;
            }
            var weight = vec2(1u, 0u);
            if by_mass {
                weight = mass(bitcast<f32>(bits));
            }
            let bin = digit(pass_index, place);
            let low = atomicAdd(&bins_low[bin], weight.x);
            let high = weight.y + select(0u, 1u, low + weight.x < low);
            if high != 0u {
                atomicAdd(&bins_high[bin], high);
            }
        }
    }
    workgroupBarrier();
}

fn bin_weight(bin: u32) -> vec2<u32> {
    return vec2(atomicLoad(&bins_low[bin]), atomicLoad(&bins_high[bin]));
}

// Leaves in `sums` the weight of each thread's four bins and of all before.
fn sum_bins() {
    var own = vec2(0u, 0u);
    for (var bin = 4u * thread; bin < 4u * thread + 4u; bin++) {
        own = add64(own, bin_weight(bin));
    }
    sums[thread] = own;
    for (var offset = 1u; offset < N_THREADS; offset *= 2u) {
        workgroupBarrier();
        if thread >= offset {
            own = add64(own, sums[thread - offset]);
        }
        workgroupBarrier();
        sums[thread] = own;
    }
}

// The bin in which the running sum reaches `goal`, and what of the goal is left there.
fn reach(goal: vec2<u32>) -> vec3<u32> {
    workgroupBarrier();
    var before = vec2(0u, 0u);
    if thread > 0u {
        before = sums[thread - 1u];
    }
    if less64(before, goal) && !less64(sums[thread], goal) {
        var bin = 4u * thread;
        var left = subtract64(goal, before);
        while less64(bin_weight(bin), left) {
            left = subtract64(left, bin_weight(bin));
            bin++;
        }
        reached = vec3(bin, left);
    }
    return workgroupUniformLoad(&reached);
}

// Keeps the shortest prefix of `amount` ids, or of the share amount * 2^-32 of all mass.
fn keep_prefix(by_mass: bool, amount: u32) {
    var pivot = vec2(0u, 0u);
    var goal = vec2(0u, 0u);
    for (var pass_index = 0u; pass_index < N_PASSES; pass_index++) {
        fill_bins(pass_index, pivot, by_mass);
        sum_bins();
        if pass_index == 0u {
            let total = workgroupUniformLoad(&sums[N_THREADS - 1u]);
            goal = vec2(amount, 0u);
            if by_mass {
                goal = nucleus(total, amount);
            } else if less64(total, goal) {
                goal = total;
            }
        }
        let found = reach(goal);
        pivot |= from_digit(pass_index, found.x);
        goal = found.yz;
    }
    for (var four = thread; 4u * four < params.n_ids; four += N_THREADS) {
        let bits = scores[processed + four];
        let places = vec4(0x80000000u) - ordered_four(bits);
        let is_past = (places > vec4(pivot.x)) | ((places == vec4(pivot.x)) & (ids_of(four) > vec4(pivot.y)));
        scores[processed + four] = select(bits, vec4(NEG_INF), is_past);
    }
}

// Puts -inf in place of every processed score that a filter drops. They are t <= 0, the best is 0.
fn apply_filters(top_k: u32, top_p: u32, min_p: f32) {
    if top_k > 0u && top_k < params.n_ids {
        keep_prefix(false, top_k);
    }
    if top_p > 0u {
        keep_prefix(true, top_p);
    }
    if min_p > 0.0 {
        for (var four = thread; 4u * four < params.n_ids; four += N_THREADS) {
            var bits = scores[processed + four];
            for (var i = 0u; i < 4u; i++) {
                if bits[i] != NEG_INF && exp_nonpositive(bitcast<f32>(bits[i])) < min_p {
                    bits[i] = NEG_INF;
                }
            }
            scores[processed + four] = bits;
        }
    }
}
