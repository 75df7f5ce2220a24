//! Who asks for what, and when: bursts, floods of one prefix, samples of one prompt, chats, deadlines.

use crate::rng::Rng;
use crate::script::{Sampling, Script};
use crate::setup::Setup;
use proxytune::engine::scheduler::{Arrival, LaneSpec, RequestId, TenantId};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// Finished texts that a tenant may go on from.
const N_REMEMBERED: usize = 4;

/// A request with its story and its patience.
pub(crate) struct Order {
    pub(crate) arrival: Arrival,
    pub(crate) script: Rc<Script>,
    /// Steps it waits for a slot.
    pub(crate) queue_patience: Option<u64>,
    /// Steps it waits for its end.
    pub(crate) patience: Option<u64>,
}

pub(crate) struct Clients {
    next_id: u64,
    in_burst: bool,
    /// `[role][stem]`
    stems: [Vec<Vec<u32>>; 3],
    /// Per tenant.
    finished: Vec<VecDeque<Rc<Script>>>,
}

impl Order {
    /// A request of a quiet client: the base alone, or three models with prompts of their own.
    pub(crate) fn new(id: u64, tenant: u64, lanes: Vec<LaneSpec>, max_tokens: usize, leader: Option<u64>) -> Self {
        let lane_of_role = if lanes.len() == 1 { [0; 3] } else { [0, 1, 2] };
        let sampling = Sampling { salt: 16 * id + 1, n_vocab: 1000, stop_one_in: u64::MAX, fail_one_in: u64::MAX };
        let (id, tenant, leader) = (RequestId(id), TenantId(tenant), leader.map(RequestId));
        let script = Rc::new(Script::new(tenant, &lanes, lane_of_role, max_tokens, false, sampling));
        let arrival = Arrival { id, tenant, lanes, lane_of_role, max_tokens, needs_host: false, leader };
        Self { arrival, script, queue_patience: None, patience: None }
    }
}

impl Clients {
    pub(crate) fn new(setup: &Setup, rng: &mut Rng) -> Self {
        let stems = [0; 3].map(|_| (0..setup.n_stems).map(|_| text(setup, rng, setup.max_prompt)).collect());
        Self { next_id: 0, in_burst: true, stems, finished: vec![VecDeque::new(); setup.n_tenants] }
    }

    /// What arrives before the next step; at least one order where nobody is there.
    pub(crate) fn arrivals(&mut self, setup: &Setup, rng: &mut Rng, is_idle: bool) -> Vec<Order> {
        self.in_burst ^= rng.chance(setup.turn);
        let rate = if self.in_burst { setup.rate } else { setup.rate / 20.0 };
        let mut orders = Vec::new();
        // Geometric with this mean: now and then many at once.
        while orders.len() < 200 && (rng.chance(rate / (1.0 + rate)) || (is_idle && orders.is_empty())) {
            let tenant = if rng.chance(setup.first_tenant) { 0 } else { rng.below(setup.n_tenants) };
            self.order(setup, rng, tenant, &mut orders);
        }
        orders
    }

    pub(crate) fn remember(&mut self, script: Rc<Script>) {
        let finished = &mut self.finished[script.tenant.0 as usize];
        finished.push_back(script);
        if finished.len() > N_REMEMBERED {
            finished.pop_front();
        }
    }

    /// One request, or all samples of one.
    fn order(&mut self, setup: &Setup, rng: &mut Rng, tenant: usize, orders: &mut Vec<Order>) {
        let max_tokens = rng.within(1, setup.max_tokens);
        let (lanes, lane_of_role) = lanes(setup, self.prompts(setup, rng, tenant, max_tokens), rng);
        let needs_host = rng.chance(setup.needs_host);
        let n_samples = if rng.chance(setup.forked) { rng.within(2, 5) } else { 1 };
        let hurried = rng.chance(setup.hurried);
        let mut patience = |steps| hurried.then(|| rng.within(0, steps) as u64);
        let (queue_patience, patience) = (patience(100), patience(300));
        let (leader, tenant) = (RequestId(self.next_id), TenantId(tenant as u64));
        for _ in 0..n_samples {
            let id = RequestId(self.next_id);
            // Now and then a number is left out: its request was refused elsewhere.
            self.next_id += if rng.chance(0.9) { 1 } else { 2 };
            let (n_vocab, stop_one_in, fail_one_in) = (setup.n_vocab as u64, setup.stop_one_in, setup.fail_one_in);
            let sampling = Sampling { salt: rng.next(), n_vocab, stop_one_in, fail_one_in };
            let script = Script::new(tenant, &lanes, lane_of_role, max_tokens, needs_host, sampling);
            let arrival = Arrival {
                id,
                tenant,
                lanes: lanes.clone(),
                lane_of_role,
                max_tokens,
                needs_host,
                leader: (id != leader).then_some(leader),
            };
            orders.push(Order { arrival, script: Rc::new(script), queue_patience, patience });
        }
    }

    /// A prompt per role: the next turn of a chat, a stem and more, or something new.
    fn prompts(&self, setup: &Setup, rng: &mut Rng, tenant: usize, max_tokens: usize) -> [Vec<u32>; 3] {
        let chat = rng.chance(setup.chatty).then(|| self.finished[tenant].get(rng.below(N_REMEMBERED))).flatten();
        if let Some(script) = chat {
            let turn = text(setup, rng, 3);
            let prompts = script.lane_of_role.map(|lane| [&script.transcript(lane)[..], &turn].concat());
            // Chats that grew too long begin anew.
            if prompts.iter().all(|prompt| prompt.len() + max_tokens <= setup.max_prompt + setup.max_tokens) {
                return prompts;
            }
        }
        let templated = rng.chance(setup.templated);
        let stem = rng.chance(setup.stemmed).then(|| rng.below(setup.n_stems));
        let mut prompt = |role: usize| {
            let new = text(setup, rng, setup.max_prompt);
            let Some(stem) = stem else { return new };
            let stem = &self.stems[role][stem];
            let mut prompt = stem[..rng.within(stem.len() / 2, stem.len())].to_vec();
            prompt.extend(new);
            prompt.truncate(setup.max_prompt);
            prompt
        };
        let base = prompt(0);
        if templated { [base, prompt(1), prompt(2)] } else { [base.clone(), base.clone(), base] }
    }
}

fn text(setup: &Setup, rng: &mut Rng, longest: usize) -> Vec<u32> {
    (0..rng.within(1, longest)).map(|_| rng.below(setup.n_vocab) as u32).collect()
}

/// Lanes as the engine makes them: roles of equal weights and prompts share one; base or expert alone have one.
fn lanes(setup: &Setup, prompts: [Vec<u32>; 3], rng: &mut Rng) -> (Vec<LaneSpec>, [usize; 3]) {
    let prompts = prompts.map(Arc::<[u32]>::from);
    let roles = if rng.chance(setup.single) { [rng.below(2); 3] } else { [0, 1, 2] };
    let mut lanes: Vec<LaneSpec> = Vec::new();
    let lane_of_role = roles.map(|role| {
        let lane = LaneSpec { seat: setup.seats[role], prompt: prompts[role].clone() };
        lanes.iter().position(|other| *other == lane).unwrap_or_else(|| {
            lanes.push(lane);
            lanes.len() - 1
        })
    });
    (lanes, lane_of_role)
}
