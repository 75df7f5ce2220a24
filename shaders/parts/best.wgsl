// A workgroup that shares a row: thread t has the fours of ids t, t + 256, ... Scores are moved as bits: WGSL promises
// neither infinities nor denormal numbers.

const N_THREADS = 256u;
const NEG_INF = 0xff800000u;
const POS_INF = 0x7f800000u;

// (ordered bits, id).
var<workgroup> best: array<vec2<u32>, N_THREADS>;
var<private> thread: u32;

fn better(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return select(b, a, a.x > b.x || (a.x == b.x && a.y < b.y));
}

// The highest of the threads' (ordered bits, id), ties to the lowest id.
fn best_of_all(own: vec2<u32>) -> vec2<u32> {
    best[thread] = own;
    for (var half = N_THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            best[thread] = better(best[thread], best[thread + half]);
        }
    }
    return workgroupUniformLoad(&best[0]);
}

// Bit `id` of the mask that starts at `word` of the constraints.
fn in_mask(word: u32, id: u32) -> bool {
    return (constraints[word + (id >> 5u)] >> (id & 31u) & 1u) == 1u;
}
