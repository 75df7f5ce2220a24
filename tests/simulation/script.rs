//! What a request must come to, whatever happens around it: its text is a function of its content alone.

use crate::rng::mix;
use proxytune::engine::batch::Seat;
use proxytune::engine::scheduler::{LaneSpec, TenantId};
use std::sync::Arc;

/// How a text ends if nobody cancels it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Its last id is a stop id.
    Stop,
    /// It has `max_tokens` ids.
    Length,
    /// The draw after its last id fails.
    Numeric,
}

/// What one draw gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Draw {
    Token(u32),
    StopToken(u32),
    Fails,
}

/// What decides a draw beside the content of the lanes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampling {
    /// Tells samples of one prompt apart.
    pub(crate) salt: u64,
    pub(crate) n_vocab: u64,
    /// Of so many draws one is a stop id.
    pub(crate) stop_one_in: u64,
    /// Of so many draws one fails.
    pub(crate) fail_one_in: u64,
}

impl Sampling {
    /// `states` are the hashes of the lanes that base, expert and anti-expert read.
    pub(crate) fn draw(&self, states: [u64; 3]) -> Draw {
        let bits = states.into_iter().fold(self.salt, mix);
        let token = (bits % self.n_vocab) as u32;
        if mix(bits, 1).is_multiple_of(self.fail_one_in) {
            Draw::Fails
        } else if mix(bits, 2).is_multiple_of(self.stop_one_in) {
            Draw::StopToken(token)
        } else {
            Draw::Token(token)
        }
    }
}

/// One lane: the hash of every prefix of prompt and response.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) seat: Seat,
    pub(crate) prompt: Arc<[u32]>,
    /// `hashes[i]` is of the tokens `0..=i`; the response's last id is in no prefix that is computed.
    pub(crate) hashes: Vec<u64>,
}

/// The whole story of a request, told before it begins.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) tenant: TenantId,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) lane_of_role: [usize; 3],
    pub(crate) max_tokens: usize,
    pub(crate) needs_host: bool,
    pub(crate) sampling: Sampling,
    pub(crate) response: Vec<u32>,
    pub(crate) ending: Ending,
    /// After so many ids the host finds a stop string.
    pub(crate) host_stop: Option<usize>,
}

/// The hash of no tokens. The tenant is in it though no device knows tenants: what is shared between two is wrong.
pub(crate) fn start(tenant: TenantId, seat: Seat) -> u64 {
    mix(mix(tenant.0, seat.stack as u64), seat.member as u64 + 7)
}

pub(crate) fn extend(hash: u64, token: u32) -> u64 {
    mix(hash, u64::from(token) + 1)
}

impl Script {
    pub(crate) fn new(
        tenant: TenantId,
        lanes: &[LaneSpec],
        lane_of_role: [usize; 3],
        max_tokens: usize,
        needs_host: bool,
        sampling: Sampling,
    ) -> Self {
        let lane = |spec: &LaneSpec| {
            let hashes = spec.prompt.iter().scan(start(tenant, spec.seat), |hash, &token| {
                *hash = extend(*hash, token);
                Some(*hash)
            });
            Lane { seat: spec.seat, prompt: spec.prompt.clone(), hashes: hashes.collect() }
        };
        let mut lanes: Vec<Lane> = lanes.iter().map(lane).collect();
        let (mut response, mut ending) = (Vec::new(), Ending::Length);
        while response.len() < max_tokens {
            let states = lane_of_role.map(|lane| *lanes[lane].hashes.last().expect("a prompt has a token"));
            let (token, ends) = match sampling.draw(states) {
                Draw::Token(token) => (token, None),
                Draw::StopToken(token) => (token, Some(Ending::Stop)),
                Draw::Fails => {
                    ending = Ending::Numeric;
                    break;
                }
            };
            response.push(token);
            for lane in &mut lanes {
                let last = *lane.hashes.last().expect("a prompt has a token");
                lane.hashes.push(extend(last, token));
            }
            if let Some(ends) = ends {
                ending = ends;
                break;
            }
        }
        let host_stop = (mix(sampling.salt, 3).is_multiple_of(16) && !response.is_empty())
            .then(|| 1 + (mix(sampling.salt, 4) % response.len() as u64) as usize);
        Self { tenant, lanes, lane_of_role, max_tokens, needs_host, sampling, response, ending, host_stop }
    }

    pub(crate) fn token(&self, lane: usize, position: usize) -> u32 {
        let prompt = &self.lanes[lane].prompt;
        prompt.get(position).copied().unwrap_or_else(|| self.response[position - prompt.len()])
    }

    /// Rows of its prompts, if nothing is found computed.
    pub(crate) fn n_prompt_rows(&self) -> usize {
        self.lanes.iter().map(|lane| lane.prompt.len()).sum()
    }

    /// Rows of its response at most.
    pub(crate) fn most_response_rows(&self) -> usize {
        self.lanes.len() * self.max_tokens
    }

    /// The prompt and the response of a lane, as a later turn of a chat begins with.
    pub(crate) fn transcript(&self, lane: usize) -> Vec<u32> {
        [&self.lanes[lane].prompt[..], &self.response].concat()
    }
}
