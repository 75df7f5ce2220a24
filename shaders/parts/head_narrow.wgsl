// Octets of a head of any even width, pair by pair; the last may have fewer than four pairs, the rest of it is zero.

alias Elements = f32;
alias Words = u32;
const N_OCTETS = (HEAD_DIM + 7u) / 8u;
const N_PAIRS = HEAD_DIM / 2u;

fn plane_pair(word: u32, pair: u32) -> vec2<f32> {
    if pair >= N_PAIRS {
        return vec2<f32>();
    }
    let at = word + pair * PAIR_WORDS;
    if KV_DTYPE == F32 {
        return vec2<f32>(bitcast<f32>(plane[at]), bitcast<f32>(plane[at + 1u]));
    } else if KV_DTYPE == BF16 {
        return vec2<f32>(bitcast<f32>(plane[at] << 16u), bitcast<f32>(plane[at] & 0xffff0000u));
    }
    // A device may flush subnormals, see octet.wgsl.
    return unpack2x16float(plane[at]);
}

fn plane_octet(word: u32, octet: u32) -> Octet {
    let pair = 4u * octet;
    return Octet(
        vec4<f32>(plane_pair(word, pair), plane_pair(word, pair + 1u)),
        vec4<f32>(plane_pair(word, pair + 2u), plane_pair(word, pair + 3u)),
    );
}

fn load_pair(start: u32, pair: u32) -> vec2<f32> {
    if pair >= N_PAIRS {
        return vec2<f32>();
    }
    return vec2<f32>(qkv[start + 2u * pair], qkv[start + 2u * pair + 1u]);
}

fn load_octet(start: u32, octet: u32) -> Octet {
    let pair = 4u * octet;
    return Octet(
        vec4<f32>(load_pair(start, pair), load_pair(start, pair + 1u)),
        vec4<f32>(load_pair(start, pair + 2u), load_pair(start, pair + 3u)),
    );
}

fn store_octet(start: u32, octet: u32, value: Octet) {
    for (var i = 0u; i < 4u && 8u * octet + i < HEAD_DIM; i++) {
        y[start + 8u * octet + i] = value.lo[i];
    }
    for (var i = 4u; i < 8u && 8u * octet + i < HEAD_DIM; i++) {
        y[start + 8u * octet + i] = value.hi[i - 4u];
    }
}
