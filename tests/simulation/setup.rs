//! What a seed decides before its run begins: the machine, the models, the clients.

use crate::rng::Rng;
use proxytune::engine::batch::Seat;
use proxytune::engine::scheduler::Sizes;

/// The machine and the habits of its clients.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) sizes: Sizes,
    /// Where base, expert and anti-expert are.
    pub(crate) seats: [Seat; 3],
    pub(crate) n_tenants: usize,
    /// Of all arrivals, the share that the first tenant sends.
    pub(crate) first_tenant: f64,
    /// Steps in which requests arrive; what is left then is worked off.
    pub(crate) n_steps: u64,
    /// Arrivals per step while a burst lasts.
    pub(crate) rate: f64,
    /// Chance per step that a burst begins, or ends.
    pub(crate) turn: f64,
    /// Ids that prompts and draws are made of: with few, unrelated texts agree for a page or two.
    pub(crate) n_vocab: usize,
    pub(crate) max_prompt: usize,
    pub(crate) max_tokens: usize,
    /// Texts that prompts begin with, and how often they do.
    pub(crate) n_stems: usize,
    pub(crate) stemmed: f64,
    /// How often roles have prompts of their own.
    pub(crate) templated: f64,
    /// How often base or expert run alone.
    pub(crate) single: f64,
    /// How often a request is one of several samples.
    pub(crate) forked: f64,
    /// How often a prompt goes on from a finished text.
    pub(crate) chatty: f64,
    pub(crate) needs_host: f64,
    pub(crate) stop_one_in: u64,
    pub(crate) fail_one_in: u64,
    /// Chance per step that somebody cancels.
    pub(crate) cancels: f64,
    /// How often a request has deadlines.
    pub(crate) hurried: f64,
    /// Chance that a step under way is read before it has to be.
    pub(crate) eager: f64,
    /// The step whose result never comes.
    pub(crate) device_fails_at: Option<u64>,
}

const PAGE_TOKENS: [usize; 8] = [1, 2, 3, 4, 4, 5, 8, 16];

impl Setup {
    /// A machine for the pair in one launch, whose clients send nothing of their own and always wait.
    pub(crate) fn quiet(sizes: Sizes, n_tenants: usize) -> Self {
        let seat = |stack, member| Seat { stack, member };
        Self {
            sizes,
            seats: [seat(0, 0), seat(1, 0), seat(1, 1)],
            n_tenants,
            first_tenant: 0.0,
            n_steps: 0,
            rate: 0.0,
            turn: 0.0,
            n_vocab: 1000,
            max_prompt: 1,
            max_tokens: 1,
            n_stems: 1,
            stemmed: 0.0,
            templated: 0.0,
            single: 0.0,
            forked: 0.0,
            chatty: 0.0,
            needs_host: 0.0,
            stop_one_in: u64::MAX,
            fail_one_in: u64::MAX,
            cancels: 0.0,
            hurried: 0.0,
            eager: 0.0,
            device_fails_at: None,
        }
    }

    pub(crate) fn new(rng: &mut Rng) -> Self {
        let seats = seats(rng);
        let n_stacks = 1 + seats.iter().map(|seat| seat.stack).max().expect("three roles");
        let page_tokens: Vec<usize> = (0..n_stacks).map(|_| *rng.pick(&PAGE_TOKENS)).collect();
        let (max_prompt, max_tokens): (usize, usize) = (*rng.pick(&[3, 10, 20, 40]), *rng.pick(&[2, 8, 16, 30]));
        let n_slots = *rng.pick(&[1, 2, 3, 4, 4, 8, 8, 12]);
        // The largest request just fits, or a few do, or nearly all.
        let largest: usize = seats.iter().map(|seat| (max_prompt + max_tokens).div_ceil(page_tokens[seat.stack])).sum();
        let n_pages = (largest as f64 * rng.pick(&[0.8, 1.0, 1.0, 1.3, 2.0, 3.0, 6.0, 12.0])).ceil() as usize;
        let prefill_rows = prefill_rows(rng, &seats, n_stacks);
        let stop_one_in = *rng.pick(&[4, 10, 30, 1000]);
        // Steps that a request takes of the machine, roughly, by its slots, its pages, and its prompt rows.
        let response = max_tokens.min(stop_one_in as usize) as f64 / 2.0 + 1.0;
        let at_once = n_slots.min(n_pages * 2 / largest).max(1) as f64;
        let n_steps_each = response / at_once + max_prompt as f64 / prefill_rows[0] as f64;
        Self {
            sizes: Sizes {
                n_slots,
                n_pages,
                page_tokens,
                prefill_rows,
                lag: *rng.pick(&[0, 0, 1, 3, 8, 8, 8]),
                max_waiting: *rng.pick(&[3, 20, 100, 1000]),
            },
            seats,
            n_tenants: rng.within(1, 4),
            first_tenant: *rng.pick(&[0.25, 0.5, 0.95]),
            n_steps: *rng.pick(&[500, 1000, 2000, 6000]),
            rate: rng.pick(&[0.2, 0.8, 1.2, 3.0]) / n_steps_each,
            turn: *rng.pick(&[0.0, 0.002, 0.02]),
            n_vocab: *rng.pick(&[2, 10, 1000]),
            max_prompt,
            max_tokens,
            n_stems: rng.within(1, 4),
            stemmed: *rng.pick(&[0.0, 0.5, 0.9]),
            templated: *rng.pick(&[0.0, 0.3, 1.0]),
            single: *rng.pick(&[0.0, 0.2]),
            forked: *rng.pick(&[0.0, 0.1, 0.5]),
            chatty: *rng.pick(&[0.0, 0.3]),
            needs_host: *rng.pick(&[0.0, 0.0, 0.05, 0.5]),
            stop_one_in,
            fail_one_in: *rng.pick(&[20, 1000, 1_000_000]),
            cancels: *rng.pick(&[0.0, 0.01, 0.2]),
            hurried: *rng.pick(&[0.0, 0.2]),
            eager: *rng.pick(&[0.0, 0.3]),
            device_fails_at: rng.chance(0.1).then(|| rng.within(1, 1000) as u64),
        }
    }
}

/// A pair in one launch, or in two, or one model in every role.
fn seats(rng: &mut Rng) -> [Seat; 3] {
    let seat = |stack, member| Seat { stack, member };
    *rng.pick(&[
        [seat(0, 0), seat(1, 0), seat(1, 1)],
        [seat(0, 0), seat(1, 0), seat(1, 1)],
        [seat(0, 0), seat(1, 0), seat(2, 0)],
        [seat(0, 0), seat(0, 1), seat(0, 1)],
        [seat(0, 0), seat(1, 0), seat(0, 0)],
        [seat(0, 0), seat(0, 0), seat(0, 0)],
    ])
}

/// At least one row per lane of a member: all lanes of a request end their prompts in one step.
fn prefill_rows(rng: &mut Rng, seats: &[Seat; 3], n_stacks: usize) -> Vec<usize> {
    let wanted = *rng.pick(&[1, 2, 7, 64]);
    let n_lanes = |seat: &Seat| seats.iter().filter(|other| *other == seat).count();
    let least = |stack| seats.iter().filter(|seat| seat.stack == stack).map(n_lanes).max().unwrap_or(1);
    (0..n_stacks).map(|stack| wanted.max(least(stack))).collect()
}
