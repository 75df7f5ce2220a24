// Eight neighbouring elements in f32.

struct Octet {
    lo: vec4<f32>,
    hi: vec4<f32>,
}

// bf16 is widened exactly. So is f16, but for subnormals (below 2^-14), which WGSL lets a device flush to zero in
// unpack2x16float; the self-test has weights that small and fails on a device that does.
fn widen(words: vec4<u32>, dtype: u32) -> Octet {
    if dtype == BF16 {
        let even = bitcast<vec4<f32>>(words << vec4<u32>(16u));
        let odd = bitcast<vec4<f32>>(words & vec4<u32>(0xffff0000u));
        return Octet(vec4<f32>(even.x, odd.x, even.y, odd.y), vec4<f32>(even.z, odd.z, even.w, odd.w));
    }
    return Octet(
        vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y)),
        vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w)),
    );
}
