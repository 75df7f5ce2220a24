//! Requests of all kinds, made from a seed.

use super::{alone, on_cpu, start, trio};
use proxytune::engine::scheduler::TenantId;
use proxytune::engine::{Completion, Draft, Handle, Mode, Sampling};

/// SplitMix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(super) fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }

    fn ids(&mut self, n: u64) -> Vec<u32> {
        let n_ids = trio().vocabulary().n_ids as u64;
        (0..n).map(|_| self.below(n_ids) as u32).collect()
    }

    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// `n` requests of mixed lengths, modes, alphas and sampling settings, of at most `max_tokens` tokens. Many prompts have
/// a beginning in common.
pub(super) fn mixed(n: usize, max_tokens: u64) -> Vec<Draft> {
    let mut random = Random(7);
    let beginnings: Vec<Vec<u32>> = [0, 16, 40, 80].map(|n_tokens| random.ids(n_tokens)).into();
    (0..n as u64).map(|index| draft(index, max_tokens, &beginnings, &mut random)).collect()
}

fn draft(index: u64, max_tokens: u64, beginnings: &[Vec<u32>], random: &mut Random) -> Draft {
    let beginning = random.below(beginnings.len() as u64) as usize;
    let n_tail = 1 + random.below(30);
    let tail = random.ids(n_tail);
    let is_one_prompt = random.one_in(3);
    let prompt = |role: usize| {
        let begins = if is_one_prompt { beginning } else { beginning + role };
        [&beginnings[begins % beginnings.len()][..], &tail].concat()
    };
    let max_tokens = 1 + random.below(max_tokens) as u32;
    let mut sampling = Sampling {
        alpha: random.of(&[0.0, 1.0, 1.0, -0.5, 2.5, 0.3]),
        temperature: random.of(&[0.0, 0.8, 1.5]),
        top_k: random.of(&[0, 0, 20]),
        top_p: random.of(&[1.0, 0.9]),
        min_p: random.of(&[0.0, 0.0, 0.02]),
        seed: Some(index),
        max_tokens,
        min_tokens: random.below(u64::from(max_tokens)) as u32,
        ignore_eos: random.one_in(2),
        ..Sampling::default()
    };
    if random.one_in(3) {
        sampling.repetition_penalty = 1.3;
        sampling.presence_penalty = random.of(&[0.0, 0.7]);
        sampling.frequency_penalty = random.of(&[0.0, 0.4]);
    }
    if random.one_in(6) {
        sampling.logit_bias = vec![(random.ids(1)[0], 3.0)];
    }
    let mode = random.of(&[Mode::Combined, Mode::Combined, Mode::Combined, Mode::BaseOnly, Mode::ExpertOnly]);
    let mut draft = Draft {
        prompts: [prompt(0), prompt(1), prompt(2)],
        mode,
        sampling,
        n: random.of(&[1, 1, 1, 2, 4]),
        tenant: TenantId(index % 3),
        ..Draft::default()
    };
    if mode != Mode::ExpertOnly {
        draft.sampling.base_top_p = random.of(&[1.0, 1.0, 0.95]);
        draft.record = random.one_in(4).then_some(3);
    }
    draft
}

/// The requests, some of which now ban or stop at what they said before, and what each of them says alone.
pub(super) struct Workload {
    pub(super) drafts: Vec<Draft>,
    pub(super) alone: Vec<Vec<Completion>>,
}

impl Workload {
    /// On an engine that runs one request at a time, each of a tenant of its own, so that it finds nothing computed but
    /// the prompt of its own first sample.
    pub(super) fn new(mut drafts: Vec<Draft>, engine: &Handle) -> Self {
        let mut next_tenant = 1_000;
        let mut run = |draft: &Draft| {
            next_tenant += 1;
            alone(engine, &Draft { tenant: TenantId(next_tenant), ..draft.clone() })
        };
        let mut said: Vec<_> = drafts.iter().map(&mut run).collect();
        for (index, (draft, said)) in drafts.iter_mut().zip(&mut said).enumerate() {
            let Completion { token_ids, text, .. } = &said[0];
            let middle = text.chars().count() / 2;
            match index % 8 {
                // The next draw depends on what the host reads.
                1 => draft.bad_words = token_ids.windows(2).map(<[u32]>::to_vec).collect(),
                3 => draft.bad_words = token_ids.first().map(|&id| vec![vec![id]]).unwrap_or_default(),
                5 if middle > 0 => draft.stop = vec![text.chars().skip(middle).take(2).collect()],
                7 => draft.bad_first_ids = token_ids.first().copied().into_iter().collect(),
                _ => continue,
            }
            *said = run(draft);
        }
        Self { drafts, alone: said }
    }

    /// The one that the tests on the CPU share.
    pub(super) fn on_cpu() -> Self {
        let drafts = mixed(200, 40);
        Self::new(drafts.clone(), &start(on_cpu(4, &drafts)))
    }
}
