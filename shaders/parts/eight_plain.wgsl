// Lanes exchange through workgroup memory. The op has N_THREADS, thread and lane.

var<workgroup> exchanged: array<u32, 8u * N_THREADS>;

// Word j: that of lane j.
fn gathered(own: u32) -> EightWords {
    workgroupBarrier();
    exchanged[thread] = own;
    workgroupBarrier();
    let at = thread - lane;
    return EightWords(
        vec4<u32>(exchanged[at], exchanged[at + 1u], exchanged[at + 2u], exchanged[at + 3u]),
        vec4<u32>(exchanged[at + 4u], exchanged[at + 5u], exchanged[at + 6u], exchanged[at + 7u]),
    );
}

// The sum over the lanes of their number `lane`: ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)).
fn sum_of_own(own: Eight) -> f32 {
    workgroupBarrier();
    for (var i = 0u; i < 4u; i++) {
        exchanged[8u * thread + i] = bitcast<u32>(own.lo[i]);
        exchanged[8u * thread + 4u + i] = bitcast<u32>(own.hi[i]);
    }
    workgroupBarrier();
    let at = 8u * (thread - lane) + lane;
    let a = number(at) + number(at + 32u);
    let b = number(at + 8u) + number(at + 40u);
    let c = number(at + 16u) + number(at + 48u);
    let d = number(at + 24u) + number(at + 56u);
    return (a + c) + (b + d);
}

fn number(at: u32) -> f32 {
    return bitcast<f32>(exchanged[at]);
}
