//! The roofline of a CUDA decode step on paper: what each kernel must read, how long that takes at a card's bandwidth, and
//! what a step is expected to take with the edges of its launches. Needs no card; what a card measures is compared with it.
//!
//!     cargo bench --bench roofline

use proxytune::checkpoint::shapes::{SHAPES, Shape};

/// A card as its data sheet has it.
struct Card {
    name: &'static str,
    /// Bytes a microsecond.
    bytes_per_us: f64,
}

const CARDS: [Card; 2] = [Card { name: "H100", bytes_per_us: 3.35e6 }, Card { name: "H200", bytes_per_us: 4.8e6 }];

/// Base and pair of each step.
const TRIOS: [[&str; 2]; 3] =
    [["qwen2.5-7b", "qwen2.5-0.5b"], ["qwen2.5-14b", "qwen2.5-0.5b"], ["llama-2-13b", "llama-2-7b"]];

/// Tokens in each KV cache.
const CONTEXT: usize = 512;
/// Share of the data sheet's bandwidth that a streaming kernel reaches on these cards.
const REACHED: f64 = 0.92;
/// Microseconds from the end of a kernel to useful work of the next, both in a graph and with programmatic launch. Assumed:
/// half of the 1.3 that others report for graphs without it.
const EDGE_US: f64 = 0.7;
/// Microseconds of a kernel that has hardly anything to read: x from the cache, one wave of weights, the sums.
const LEAST_US: f64 = 2.0;

/// One kernel of a step.
struct Kernel {
    name: &'static str,
    launches: usize,
    /// Of one launch.
    bytes: usize,
}

/// The kernels of one stack: a model, or `members` of a shape in one launch.
fn kernels(shape: &Shape, members: usize) -> Vec<Kernel> {
    let Shape { n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, n_vocab, .. } = *shape;
    let kernel = |name, launches, elements: usize| Kernel { name, launches, bytes: members * elements };
    let (q, kv) = (n_heads * head_dim, n_kv_heads * head_dim);
    vec![
        kernel("embed", 1, (2 + 4) * d_model),
        kernel("norm_matmul (q, k, v)", n_layers, 2 * (q + 2 * kv) * d_model),
        kernel("rope_append", n_layers, 4 * (2 * q + 2 * kv) + 2 * 2 * kv),
        kernel("attention", n_layers, 2 * 2 * kv * CONTEXT),
        kernel("matmul_add (output)", n_layers, 2 * q * d_model),
        kernel("norm_gate_up", n_layers, 2 * 2 * d_ff * d_model),
        kernel("matmul_add (down)", n_layers, 2 * d_ff * d_model),
        kernel("norm_matmul (head)", 1, 2 * n_vocab * d_model),
    ]
}

impl Kernel {
    fn floor_us(&self, card: &Card) -> f64 {
        self.bytes as f64 / card.bytes_per_us
    }

    fn expected_us(&self, card: &Card) -> f64 {
        EDGE_US + (self.floor_us(card) / REACHED).max(LEAST_US)
    }
}

/// Of all launches of a chain.
fn sum(chain: &[Kernel], of_launch: impl Fn(&Kernel) -> f64) -> f64 {
    chain.iter().map(|kernel| kernel.launches as f64 * of_launch(kernel)).sum()
}

fn shape(name: &str) -> &'static Shape {
    SHAPES.iter().find(|shape| shape.name == name).expect("a shape of the table")
}

fn table(base: &Shape, pair: &Shape) {
    println!("\n### {} + 2 x {}, 16-bit weights, batch 1, {CONTEXT} tokens each\n", base.name, pair.name);
    println!("| kernel | launches | MB a launch | floor, us, H100 | H200 | expected, us, H100 | H200 |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let (base_chain, pair_chain) = (kernels(base, 1), kernels(pair, 2));
    let combine = [Kernel { name: "combine_sample", launches: 1, bytes: 5 * 4 * base.n_vocab }];
    for (of, chain) in [("base", &base_chain[..]), ("pair", &pair_chain), ("", &combine)] {
        for kernel in chain {
            let [floor, floor_h200] = [0, 1].map(|card| kernel.floor_us(&CARDS[card]));
            let [expected, expected_h200] = [0, 1].map(|card| kernel.expected_us(&CARDS[card]));
            let (name, launches, megabytes) = (kernel.name, kernel.launches, kernel.bytes as f64 / 1e6);
            println!(
                "| {of} {name} | {launches} | {megabytes:.2} | {floor:.1} | {floor_h200:.1} | {expected:.1} | {expected_h200:.1} |"
            );
        }
    }
    println!();
    for card in &CARDS {
        let floor = |kernel: &Kernel| kernel.floor_us(card);
        let alone = |chain: &[Kernel]| sum(chain, |kernel| kernel.expected_us(card));
        let launches = |chain: &[Kernel]| sum(chain, |_| 1.0);
        let floor = sum(&base_chain, floor) + sum(&pair_chain, floor) + sum(&combine, floor);
        // Both chains draw on one memory; beside each other the shorter one fills the edges of the longer one.
        let bound = floor / REACHED + EDGE_US * launches(&base_chain).max(launches(&pair_chain));
        let expected = bound.max(alone(&base_chain)).max(alone(&pair_chain)) + alone(&combine);
        println!(
            "{}: {} launches; floor {:.2} ms; base chain alone {:.2}, pair chain alone {:.2}, step expected {:.2} ms",
            card.name,
            launches(&base_chain) + launches(&pair_chain) + launches(&combine),
            floor / 1e3,
            alone(&base_chain) / 1e3,
            alone(&pair_chain) / 1e3,
            expected / 1e3,
        );
    }
}

fn main() {
    for [base, pair] in TRIOS {
        table(shape(base), shape(pair));
    }
}
