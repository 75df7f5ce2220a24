//! The scheduler's own time: microseconds per call and per step, with 256 running and 10,000 queued requests of 100 tenants.
//!
//! `cargo bench --bench scheduler`. No model and no device: every step is read at once by a loop that draws a number.

use proxytune::engine::batch::Seat;
use proxytune::engine::scheduler::{Arrival, LaneSpec, Plan, RequestId, Scheduler, Sizes, TenantId};
use std::collections::HashMap;
use std::time::{Duration, Instant};

const N_STEPS: usize = 2_000;
const N_RUNNING: usize = 256;
const N_QUEUED: usize = 10_000;
const N_TENANTS: u64 = 100;

/// How long prompts and responses are, and how many pages there are for them.
struct Workload {
    name: &'static str,
    n_prompt: usize,
    max_tokens: usize,
    n_pages: usize,
}

/// Time by part of a step.
#[derive(Default)]
struct Times {
    arrive: Duration,
    plan: Duration,
    plans: Vec<Duration>,
    read: Duration,
}

fn arrival(id: u64, workload: &Workload) -> Arrival {
    let seats = [(0, 0), (1, 0), (1, 1)].map(|(stack, member)| Seat { stack, member });
    // A shared system prompt per tenant, then tokens of its own.
    let tenant = id * 7919 % N_TENANTS;
    let n_shared = workload.n_prompt / 2;
    let token = |at: usize| if at < n_shared { tenant as u32 } else { (id * 31) as u32 + at as u32 };
    let n_prompt = workload.n_prompt / 2 + (id as usize * 37) % workload.n_prompt;
    let lane = |(seat, extra)| LaneSpec { seat, prompt: (0..n_prompt + extra).map(token).collect() };
    Arrival {
        id: RequestId(id),
        tenant: TenantId(tenant),
        lanes: seats.into_iter().zip([0, 10, 10]).map(lane).collect(),
        lane_of_role: [0, 1, 2],
        max_tokens: 1 + (id as usize * 53) % (2 * workload.max_tokens),
        needs_host: false,
        leader: None,
    }
}

fn run(workload: &Workload) {
    let mut scheduler = Scheduler::new(Sizes {
        n_slots: N_RUNNING,
        n_pages: workload.n_pages,
        page_tokens: vec![16, 64],
        prefill_rows: vec![512, 512],
        lag: 0,
        max_waiting: N_QUEUED,
    });
    let (mut next_id, mut times, mut n_ended, mut n_draws) = (0, Times::default(), 0, 0);
    // Numbers of draws left, as the device would know them.
    let mut left: HashMap<RequestId, usize> = HashMap::new();
    for step in 0..2 * N_STEPS {
        // The first half fills slots and cache and is not timed.
        if step == N_STEPS {
            (times, n_ended, n_draws) = (Times::default(), 0, 0);
        }
        while scheduler.counts().waiting < N_QUEUED {
            let arrival = arrival(next_id, workload);
            left.insert(arrival.id, arrival.max_tokens);
            next_id += 1;
            let start = Instant::now();
            scheduler.arrive(arrival).expect("there is room in the queue");
            times.arrive += start.elapsed();
        }
        let start = Instant::now();
        let plan = scheduler.plan();
        let took = start.elapsed();
        times.plan += took;
        times.plans.push(took);
        let Plan::Step(work) = plan else { panic!("there is work") };
        n_draws += work.draws.len();
        let ended: Vec<bool> = work.draws.iter().map(|id| is_last(&mut left, *id)).collect();
        let start = Instant::now();
        for (&id, &ended) in work.draws.iter().zip(&ended) {
            scheduler.drawn(id, 1);
            if ended {
                scheduler.ended(id);
                n_ended += 1;
            }
        }
        scheduler.collected();
        times.read += start.elapsed();
    }
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / N_STEPS as f64;
    times.plans.sort_unstable();
    let counts = scheduler.counts();
    println!(
        "{:<28}{:>8.1}{:>10.1}{:>8.1}{:>8.1}{:>10}{:>8}{:>8}{:>12}",
        workload.name,
        micros(times.plan),
        times.plans[N_STEPS * 99 / 100].as_secs_f64() * 1e6,
        micros(times.read),
        micros(times.arrive),
        counts.running,
        n_draws / N_STEPS,
        n_ended,
        counts.preemptions,
    );
}

fn is_last(left: &mut HashMap<RequestId, usize>, id: RequestId) -> bool {
    let left = left.get_mut(&id).expect("a known request draws");
    *left -= 1;
    *left == 0
}

fn main() {
    println!("microseconds per step, mean of {N_STEPS}; {N_QUEUED} wait");
    println!(
        "{:<28}{:>8}{:>10}{:>8}{:>8}{:>10}{:>8}{:>8}{:>12}",
        "workload", "plan", "p99", "read", "arrive", "running", "draws", "ended", "preemptions"
    );
    for workload in [
        Workload { name: "short", n_prompt: 100, max_tokens: 200, n_pages: 40_000 },
        Workload { name: "long prompts", n_prompt: 4_000, max_tokens: 500, n_pages: 200_000 },
        Workload { name: "full pool", n_prompt: 100, max_tokens: 200, n_pages: 6_000 },
        Workload { name: "full pool, long prompts", n_prompt: 4_000, max_tokens: 500, n_pages: 40_000 },
    ] {
        run(&workload);
    }
}
