// Octets of a head whose width is a multiple of eight: every load is of 16 bytes.

alias Elements = vec4<f32>;
alias Words = vec4<u32>;
const N_OCTETS = HEAD_DIM / 8u;

fn plane_octet(word: u32, octet: u32) -> Octet {
    if KV_DTYPE == F32 {
        let at = word / 4u + 2u * octet;
        return Octet(bitcast<vec4<f32>>(plane[at]), bitcast<vec4<f32>>(plane[at + 1u]));
    }
    return widen(plane[word / 4u + octet], KV_DTYPE);
}

fn load_octet(start: u32, octet: u32) -> Octet {
    let at = start / 4u + 2u * octet;
    return Octet(qkv[at], qkv[at + 1u]);
}

fn store_octet(start: u32, octet: u32, value: Octet) {
    let at = start / 4u + 2u * octet;
    y[at] = value.lo;
    y[at + 1u] = value.hi;
}
