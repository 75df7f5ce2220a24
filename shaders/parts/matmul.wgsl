// The canonical sum of the matrix ops: y = sum over k of W[n][k] x[k], in f32. The op's file has the bindings and what
// becomes of the sums.
//
// Threads are groups of eight lanes. A group has N_FOURS fours of outputs and N_ROWS rows of x. Lane l takes the octets
// c = l, l + 8, ... of K and adds their products in order, each by fma; the lanes are then added as
// ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)). Neither the weight type, nor the number of rows or outputs that are held at
// once, nor the form of the exchange changes this order. A four is four rows of one matrix, or two of each of two.
//
// The op defines rows_of(member), input_row(row), input(i) (four elements of x), gain_of(i) where HAS_GAIN, n_in(),
// FOUR_ROWS (rows of the first matrix in a four), and finish(four, totals, squares).

// From one octet of a lane to its next.
const FIRST_STEP = BLOCK_ROWS * FIRST_ROW;
const SECOND_WORDS = select(1u, 2u, SECOND_DTYPE == F32);
const SECOND_ROW = N_LANES_OF_K * SECOND_WORDS;
const SECOND_STEP = BLOCK_ROWS * SECOND_ROW;
// From one four of a group to the next, in both matrices.
const FOUR_WORDS = FOUR_ROWS * vec2<u32>(FIRST_ROW, SECOND_ROW);
const GROUP_OUTPUTS = N_FOURS * FOUR_ROWS;

// Element k of an octet of x, for every row.
struct Inputs {
    k0: Rows,
    k1: Rows,
    k2: Rows,
    k3: Rows,
    k4: Rows,
    k5: Rows,
    k6: Rows,
    k7: Rows,
}

// Sums of four rows of weights.
struct Four {
    a: Rows,
    b: Rows,
    c: Rows,
    d: Rows,
}

var<private> thread: u32;
var<private> lane: u32;
var<private> member: u32;
// Rows of x: the first of this workgroup's, and how many the member has.
var<private> first_row: u32;
var<private> n_rows: u32;
// The group's first output, within the part.
var<private> first: u32;

fn add(x: Four, y: Four) -> Four {
    return Four(x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d);
}

fn add_products(sum: Rows, w: Octet, x: Inputs) -> Rows {
    var s = fma(Rows(w.lo.x), x.k0, sum);
    s = fma(Rows(w.lo.y), x.k1, s);
    s = fma(Rows(w.lo.z), x.k2, s);
    s = fma(Rows(w.lo.w), x.k3, s);
    s = fma(Rows(w.hi.x), x.k4, s);
    s = fma(Rows(w.hi.y), x.k5, s);
    s = fma(Rows(w.hi.z), x.k6, s);
    return fma(Rows(w.hi.w), x.k7, s);
}

fn add_squares(sum: Rows, x: Inputs) -> Rows {
    var s = fma(x.k0, x.k0, sum);
    s = fma(x.k1, x.k1, s);
    s = fma(x.k2, x.k2, s);
    s = fma(x.k3, x.k3, s);
    s = fma(x.k4, x.k4, s);
    s = fma(x.k5, x.k5, s);
    s = fma(x.k6, x.k6, s);
    return fma(x.k7, x.k7, s);
}

fn times_gain(x: Inputs, lo: vec4<f32>, hi: vec4<f32>) -> Inputs {
    return Inputs(
        x.k0 * lo.x, x.k1 * lo.y, x.k2 * lo.z, x.k3 * lo.w,
        x.k4 * hi.x, x.k5 * hi.y, x.k6 * hi.z, x.k7 * hi.w,
    );
}

fn second_weights(at: u32) -> Octet {
    if SECOND_DTYPE == F32 {
        return Octet(bitcast<vec4<f32>>(second_word(at)), bitcast<vec4<f32>>(second_word(at + 1u)));
    }
    return widen(second_word(at), SECOND_DTYPE);
}

// Adds one octet of K to the sums of the four that stands at `at` of the two matrices.
fn add_four(s: Four, at: vec2<u32>, x: Inputs) -> Four {
    return Four(
        add_products(s.a, first_weights(at.x), x),
        add_products(s.b, first_weights(at.x + FIRST_ROW), x),
        add_products(s.c, second_weights(at.y), x),
        add_products(s.d, second_weights(at.y + SECOND_ROW), x),
    );
}

// Total number `index` of four.
fn total(s: Four, index: u32) -> Rows {
    return select(select(s.a, s.b, index == 1u), select(s.c, s.d, index == 3u), index >= 2u);
}

// x, through an or with 0 that no compiler can see through (a part has less than 2^31 rows): what stands on both sides is
// neither joined nor reordered, as an H100's did in one form of norm_gate_up and not in another.
fn settled(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) | (part.n_rows >> 31u));
}

// 1 / sqrt(mean of squares + eps), or 1.
fn norm_factor(squares: f32, eps: f32) -> f32 {
    if HAS_GAIN {
        return settled(1.0 / settled(sqrt(fma(squares, 1.0 / f32(n_in()), eps))));
    }
    return 1.0;
}

// Where the group's first four stands. A group past the part's end repeats the last one; what it makes is not stored.
fn first_words(n_octets: u32) -> vec2<u32> {
    let row = min(first, (part.n_rows - 1u) / GROUP_OUTPUTS * GROUP_OUTPUTS);
    let at = (row_octet(part.offset + member * part.stride + row, n_octets) + lane) * FIRST_WORDS;
    if HAS_SECOND {
        let second = part.second_offset + member * part.second_stride + row;
        return vec2<u32>(at, (row_octet(second, n_octets) + lane) * SECOND_WORDS);
    }
    return vec2<u32>(at, at + 2u * FIRST_ROW);
}

@compute @workgroup_size(N_THREADS)
fn main(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    thread = index;
    lane = index % N_LANES_OF_K;
    member = tile.z;
    first_row = tile.x * N_ROWS;
    n_rows = rows_of(member);
    if first_row >= n_rows {
        return;
    }
    first = (tile.y * (N_THREADS / N_LANES_OF_K) + index / N_LANES_OF_K) * GROUP_OUTPUTS;
    var starts: vec4<u32>;
    for (var i = 0u; i < N_ROWS; i++) {
        // Rows past the last repeat it; what they make is not stored.
        starts[i] = input_row(min(first_row + i, n_rows - 1u)) * (n_in() / 4u);
    }
    let n_octets = n_in() / 8u;
    var at = first_words(n_octets);
    var squares: Rows;
    var outputs: Outputs;
    for (var octet = lane; octet < n_octets; octet += N_LANES_OF_K) {
        var x = load_inputs(starts, octet);
        if HAS_GAIN {
            squares = add_squares(squares, x);
            let gain_at = member * (n_in() / 4u) + 2u * octet;
            x = times_gain(x, gain_of(gain_at), gain_of(gain_at + 1u));
        }
        outputs = add_outputs(outputs, at, x);
        at += vec2<u32>(FIRST_STEP, SECOND_STEP);
    }
    if HAS_GAIN {
        squares = exchange(Four(squares, Rows(), Rows(), Rows())).a;
    }
    finish_outputs(outputs, squares);
}
