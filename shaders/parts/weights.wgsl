// Where the weights of a matrix stand, eight at a time: one 16-byte word of a 16-bit type, two of f32.
//
// A matrix stands in blocks of BLOCK_ROWS rows: [block][step of eight octets][row of the block][octet][word], so that the
// lanes of a group, and the groups beside it, read neighbouring words. What is past its rows or columns is zero.
// Where the words are (a buffer or an image) is declared in front of this text: first_word(i), FIRST_DTYPE.

const N_LANES_OF_K = 8u;
// Words of one octet, and from one row of a block to the next.
const FIRST_WORDS = select(1u, 2u, FIRST_DTYPE == F32);
const FIRST_ROW = N_LANES_OF_K * FIRST_WORDS;

fn first_weights(at: u32) -> Octet {
    if FIRST_DTYPE == F32 {
        return Octet(bitcast<vec4<f32>>(first_word(at)), bitcast<vec4<f32>>(first_word(at + 1u)));
    }
    return widen(first_word(at), FIRST_DTYPE);
}

// Where octet 0 of a row stands, in words of the row's type divided by the octet's.
fn row_octet(row: u32, n_octets: u32) -> u32 {
    let n_steps = (n_octets + N_LANES_OF_K - 1u) / N_LANES_OF_K;
    return (row / BLOCK_ROWS * n_steps * BLOCK_ROWS + row % BLOCK_ROWS) * N_LANES_OF_K;
}
