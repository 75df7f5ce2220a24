// The canonical sum of the matrix ops: y = sum over k of W[n][k] x[k], in f32.
//
// 64 threads are 8 groups of 8 lanes. A group has four rows of W (the op says which) and N_ROWS rows of x at a time.
// Lane l takes the octets c = l, l + 8, ... of K and adds their products in order, each by fma; the lanes are then added
// as ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)). Neither the weight type, nor the number of rows, nor the form of the
// exchange changes this order. A group reads 128 neighbouring bytes of each 16-bit row at once.
//
// The op defines input(i) (four elements of x), gain_of(i) where HAS_GAIN, and first_weights / second_weights(row, octet).

const N_THREADS = 64u;
const N_LANES_OF_K = 8u;

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

// Sums of four rows of W, and of the squares of x.
struct Sums {
    a: Rows,
    b: Rows,
    c: Rows,
    d: Rows,
    squares: Rows,
}

fn add(x: Sums, y: Sums) -> Sums {
    return Sums(x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d, x.squares + y.squares);
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

// Adds one octet of K to the sums.
fn add_octet(sums: Sums, octet: u32, rows: vec4<u32>, starts: vec4<u32>, gain_start: u32) -> Sums {
    var s = sums;
    var x = load_inputs(starts, octet);
    if HAS_GAIN {
        s.squares = add_squares(s.squares, x);
        let at = gain_start + 2u * octet;
        x = times_gain(x, gain_of(at), gain_of(at + 1u));
    }
    s.a = add_products(s.a, first_weights(rows.x, octet), x);
    s.b = add_products(s.b, first_weights(rows.y, octet), x);
    s.c = add_products(s.c, second_weights(rows.z, octet), x);
    s.d = add_products(s.d, second_weights(rows.w, octet), x);
    return s;
}

// Totals for rows `rows` of W and the rows of x that start at `starts` (in fours of elements). `gain_start` likewise.
fn sums(thread: u32, n_octets: u32, rows: vec4<u32>, starts: vec4<u32>, gain_start: u32) -> Sums {
    var s: Sums;
    var octet = thread % N_LANES_OF_K;
    // Two at a time, so that more loads are under way.
    for (; octet + N_LANES_OF_K < n_octets; octet += 2u * N_LANES_OF_K) {
        s = add_octet(s, octet, rows, starts, gain_start);
        s = add_octet(s, octet + N_LANES_OF_K, rows, starts, gain_start);
    }
    if octet < n_octets {
        s = add_octet(s, octet, rows, starts, gain_start);
    }
    return exchange(s, thread);
}

// Total number `index` of four.
fn total(s: Sums, index: u32) -> Rows {
    return select(select(s.a, s.b, index == 1u), select(s.c, s.d, index == 3u), index >= 2u);
}

// 1 / sqrt(mean of squares + eps), or 1. The fma is written out: a compiler that may contract a quotient and a sum, or
// not, could do so in one form of a shader and not in the next, and their bits would differ.
fn norm_factor(squares: f32, n_in: u32, eps: f32) -> f32 {
    if HAS_GAIN {
        return 1.0 / sqrt(fma(squares, 1.0 / f32(n_in), eps));
    }
    return 1.0;
}
