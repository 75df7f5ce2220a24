//! One run: clients, scheduler and device, and what must hold between them after every step.

use crate::clients::{Clients, Order};
use crate::device::{Device, Drawn};
use crate::fairness::Fairness;
use crate::ledger::{Ledger, Live};
use crate::rng::{Rng, mix};
use crate::sabotage::Sabotage;
use crate::script::Ending;
use crate::setup::Setup;
use crate::summary::{Answer, Summary};
use proxytune::engine::scheduler::{Admission, Plan, Refusal, RequestId, Scheduler, Work};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hasher};

/// A clock on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Deadline {
    /// It wants a slot by then.
    Queue,
    /// It wants its end by then.
    Whole,
}

pub(crate) struct World {
    setup: Setup,
    rng: Rng,
    clients: Clients,
    scheduler: Scheduler,
    device: Device,
    ledger: Ledger,
    deadlines: BTreeSet<(u64, RequestId, Deadline)>,
    /// Steps submitted and not read.
    n_under_way: usize,
    sabotage: Option<Sabotage>,
    /// Who came in with the last step.
    pub(crate) admitted: Vec<Admission>,
    pub(crate) fairness: Fairness,
    pub(crate) summary: Summary,
}

impl World {
    pub(crate) fn new(setup: Setup, mut rng: Rng, sabotage: Option<Sabotage>) -> Self {
        let sizes = &setup.sizes;
        let device_rng = Rng::new(rng.next());
        Self {
            clients: Clients::new(&setup, &mut rng),
            scheduler: Scheduler::new(sizes.clone()),
            device: Device::new(sizes.n_slots, sizes.n_pages, &sizes.page_tokens, device_rng),
            ledger: Ledger::new(sizes, setup.n_tenants),
            fairness: Fairness::new(sizes.n_slots, setup.n_tenants),
            deadlines: BTreeSet::new(),
            n_under_way: 0,
            sabotage,
            admitted: Vec::new(),
            summary: Summary { n_runs: 1, ..Summary::default() },
            setup,
            rng,
        }
    }

    /// Requests come for `n_steps` steps; then what is left is worked off. Or the device fails, and all ends.
    pub(crate) fn run(mut self) -> Summary {
        while self.summary.n_steps < self.setup.n_steps && !self.device_is_lost() {
            let orders = self.clients.arrivals(&self.setup, &mut self.rng, self.ledger.live.is_empty());
            orders.into_iter().for_each(|order| self.arrive(order));
            self.turn();
        }
        while !self.is_idle() && !self.device_is_lost() {
            self.turn();
        }
        if self.device_is_lost() {
            self.fail_all();
        }
        self.check_end();
        self.summary.largest_share = self.fairness.largest_share;
        self.summary
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.ledger.live.is_empty()
    }

    fn device_is_lost(&self) -> bool {
        self.setup.device_fails_at.is_some_and(|step| self.summary.n_steps >= step)
    }

    pub(crate) fn arrive(&mut self, order: Order) {
        self.summary.n_requests += 1;
        let Order { arrival, script, queue_patience, patience } = order;
        let (id, leader) = (arrival.id, arrival.leader);
        // Those that were preempted wait too, and take nobody's place.
        let counts = self.scheduler.counts();
        let is_full = counts.waiting - counts.preempted >= self.setup.sizes.max_waiting;
        let pages = |n_new: usize| -> usize {
            let tokens = |lane: &crate::script::Lane| self.setup.sizes.page_tokens[lane.seat.stack];
            script.lanes.iter().map(|lane| (lane.prompt.len() + n_new).div_ceil(tokens(lane))).sum()
        };
        let needed = pages(script.max_tokens - 1);
        match self.scheduler.arrive(arrival) {
            Ok(()) => {
                assert!(!is_full && needed <= self.setup.sizes.n_pages, "{id:?} was let in");
                let patience_rows =
                    self.fairness.arrive(script.tenant, script.n_prompt_rows(), script.most_response_rows());
                self.ledger.arrive(id, script, leader, patience_rows);
                let now = self.summary.n_steps;
                let deadlines = [(queue_patience, Deadline::Queue), (patience, Deadline::Whole)];
                let deadlines = deadlines.into_iter().filter_map(|(steps, what)| Some((now + steps?, id, what)));
                self.deadlines.extend(deadlines);
            }
            Err(Refusal::QueueFull) => {
                assert!(is_full, "{id:?} was refused, but the queue is not full");
                self.summary.answered(Answer::QueueFull);
            }
            Err(Refusal::NeverFits { needed: said, limit }) => {
                assert_eq!((said, limit), (needed, self.setup.sizes.n_pages), "{id:?} was refused with other numbers");
                assert!(needed > limit, "{id:?} was refused, but it fits");
                self.summary.answered(Answer::NeverFits);
            }
        }
    }

    /// Who has had enough, then one step, or one reading.
    pub(crate) fn turn(&mut self) {
        self.meet_deadlines();
        self.cancel_some();
        match self.scheduler.plan() {
            Plan::Step(work) => self.submit(*work),
            Plan::Collect => {
                self.summary.n_collects += 1;
                self.collect();
            }
            Plan::Idle => {
                assert!(self.ledger.live.is_empty(), "idle, but {:?} are not answered", self.ledger.live.keys());
                assert_eq!(self.n_under_way, 0, "idle, but not all is read");
            }
        }
        self.check_counts();
        if self.n_under_way > 0 && self.rng.chance(self.setup.eager) {
            self.collect();
        }
    }

    fn meet_deadlines(&mut self) {
        while let Some(&(when, id, what)) = self.deadlines.first()
            && when <= self.summary.n_steps
        {
            self.deadlines.pop_first();
            if self.ledger.live.contains_key(&id) && (what == Deadline::Whole || self.scheduler.is_waiting(id)) {
                self.cancel(id, Answer::TimedOut);
            }
        }
    }

    fn cancel_some(&mut self) {
        while self.rng.chance(self.setup.cancels)
            && let (Some((&first, _)), Some((&last, _))) =
                (self.ledger.live.first_key_value(), self.ledger.live.last_key_value())
        {
            let id = RequestId(self.rng.within(first.0 as usize, last.0 as usize) as u64);
            if self.ledger.live.contains_key(&id) {
                self.cancel(id, Answer::Cancelled);
            } else {
                assert!(!self.scheduler.cancel(id), "{id:?} was answered, or never came");
                assert!(!self.scheduler.is_waiting(id), "{id:?} was answered, or never came");
            }
        }
    }

    fn cancel(&mut self, id: RequestId, answer: Answer) {
        assert_eq!(self.scheduler.is_waiting(id), self.ledger.is_waiting(id), "{id:?} waits, or is in a slot");
        assert!(self.scheduler.cancel(id), "{id:?} is not known");
        let request = self.ledger.cancel(id);
        self.answer(request, answer);
        self.check_counts();
    }

    fn answer(&mut self, Live { script, .. }: Live, answer: Answer) {
        self.summary.answered(answer);
        self.fairness.answered(script.tenant, script.n_prompt_rows() + script.most_response_rows());
    }

    fn submit(&mut self, mut work: Work) {
        self.note(&work);
        if let Some(sabotage) = &mut self.sabotage {
            sabotage.spoil(&mut work);
        }
        let done = self.ledger.submit(&work, self.n_under_way);
        self.fairness.step(&done.served, &self.ledger.line.backlogged());
        self.summary.n_steps += 1;
        self.admitted.clone_from(&work.admitted);
        let lag = work.lag;
        let scripts = work.admitted.iter().map(|admission| self.ledger.live[&admission.id].script.clone()).collect();
        self.device.submit(work, scripts);
        self.n_under_way += 1;
        while self.n_under_way > lag {
            self.collect();
        }
    }

    fn note(&mut self, work: &Work) {
        self.summary.n_copies += work.copies.len() as u64;
        self.summary.n_grown += work.grown.iter().map(|growth| growth.pages.len() as u64).sum::<u64>();
        let mut hasher = DefaultHasher::new();
        for word in work.vacated.iter().map(|&slot| slot as u64).chain(work.draws.iter().map(|id| id.0)) {
            hasher.write_u64(word);
        }
        for page in work.admitted.iter().flat_map(|admission| admission.pages.iter().flatten()) {
            hasher.write_u32(*page);
        }
        self.summary.digest = mix(self.summary.digest, hasher.finish());
    }

    /// Reads the oldest step.
    fn collect(&mut self) {
        assert!(self.n_under_way > 0, "nothing is under way that could be read");
        for drawn in self.device.collect() {
            self.read(drawn);
        }
        self.n_under_way -= 1;
        self.scheduler.collected();
    }

    fn read(&mut self, Drawn { id, token, ended }: Drawn) {
        // Cancelled, or ended by an earlier draw.
        let Some(request) = self.ledger.live.get_mut(&id) else { return };
        if let Some(token) = token {
            assert_eq!(Some(&token), request.script.response.get(request.n_read), "{id:?} gets its own text");
            request.n_read += 1;
            self.scheduler.drawn(id, token);
            if request.script.host_stop == Some(request.n_read) {
                return self.cancel(id, Answer::HostStop);
            }
        }
        let Some(ending) = ended else { return };
        self.scheduler.ended(id);
        let request = self.ledger.end(id);
        let answer = match ending {
            Ending::Stop => Answer::Stop,
            Ending::Length => Answer::Length,
            Ending::Numeric => Answer::Numeric,
        };
        assert_eq!(request.n_read, request.script.response.len(), "{id:?} has its whole text");
        self.clients.remember(request.script.clone());
        self.answer(request, answer);
    }

    /// The device is gone with what was under way: every request is told, once.
    fn fail_all(&mut self) {
        while let Some((&id, _)) = self.ledger.live.first_key_value() {
            self.cancel(id, Answer::DeviceLost);
        }
        while self.n_under_way > 0 {
            assert_eq!(self.scheduler.plan(), Plan::Collect);
            self.n_under_way -= 1;
            self.scheduler.collected();
        }
        assert_eq!(self.scheduler.plan(), Plan::Idle);
    }

    fn check_counts(&self) {
        self.ledger.check_counts(&self.scheduler.counts());
    }

    fn check_end(&mut self) {
        self.check_counts();
        let counts = self.scheduler.counts();
        assert_eq!((counts.held, counts.running, counts.waiting), (0, 0, 0));
        assert_eq!(self.summary.answers.iter().sum::<u64>(), self.summary.n_requests, "every request has an answer");
        self.summary.n_preemptions = counts.preemptions;
        self.summary.n_hit = counts.hit_tokens;
        self.summary.n_missed = counts.missed_tokens;
        self.summary.n_rows = self.ledger.n_rows;
    }
}
