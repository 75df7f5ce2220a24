// Sixteen outputs per group of lanes: a CPU has few threads, and each load of x should serve many outputs.

const N_THREADS = 16u;
const N_FOURS = 4u;

struct Outputs {
    a: Four,
    b: Four,
    c: Four,
    d: Four,
}

fn add_outputs(s: Outputs, at: vec2<u32>, x: Inputs) -> Outputs {
    return Outputs(
        add_four(s.a, at, x),
        add_four(s.b, at + FOUR_WORDS, x),
        add_four(s.c, at + 2u * FOUR_WORDS, x),
        add_four(s.d, at + 3u * FOUR_WORDS, x),
    );
}

fn finish_outputs(s: Outputs, squares: Rows) {
    finish(0u, exchange(s.a), squares);
    finish(1u, exchange(s.b), squares);
    finish(2u, exchange(s.c), squares);
    finish(3u, exchange(s.d), squares);
}
