// What eight lanes give each other: a word or a number from each.

struct Eight {
    lo: vec4<f32>,
    hi: vec4<f32>,
}

struct EightWords {
    lo: vec4<u32>,
    hi: vec4<u32>,
}

fn highest(bits: EightWords) -> f32 {
    let pairs = max(bitcast<vec4<f32>>(bits.lo), bitcast<vec4<f32>>(bits.hi));
    return max(max(pairs.x, pairs.z), max(pairs.y, pairs.w));
}

fn sum_of(bits: EightWords) -> f32 {
    let pairs = bitcast<vec4<f32>>(bits.lo) + bitcast<vec4<f32>>(bits.hi);
    return (pairs.x + pairs.z) + (pairs.y + pairs.w);
}
