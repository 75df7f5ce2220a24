//! What happened, counted.

use std::fmt;

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Stop,
    Length,
    Numeric,
    HostStop,
    Cancelled,
    TimedOut,
    QueueFull,
    NeverFits,
    DeviceLost,
}

const ANSWERS: [(Answer, &str); 9] = [
    (Answer::Stop, "stop id"),
    (Answer::Length, "max tokens"),
    (Answer::Numeric, "numeric error"),
    (Answer::HostStop, "stop string"),
    (Answer::Cancelled, "cancelled"),
    (Answer::TimedOut, "deadline"),
    (Answer::QueueFull, "queue full"),
    (Answer::NeverFits, "never fits"),
    (Answer::DeviceLost, "device lost"),
];

/// Sums over a run, or over many.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Summary {
    pub(crate) n_runs: u64,
    pub(crate) n_steps: u64,
    pub(crate) n_rows: u64,
    pub(crate) n_requests: u64,
    pub(crate) answers: [u64; ANSWERS.len()],
    pub(crate) n_preemptions: u64,
    pub(crate) n_hit: u64,
    pub(crate) n_missed: u64,
    pub(crate) n_copies: u64,
    pub(crate) n_grown: u64,
    /// Steps that were read because the next could not be made before: for want of pages, for the host, or at the end.
    pub(crate) n_collects: u64,
    /// Largest gap in service over what is allowed.
    pub(crate) largest_share: f64,
    /// Of all that the scheduler said: two runs of one seed must agree.
    pub(crate) digest: u64,
}

impl Summary {
    pub(crate) fn answered(&mut self, answer: Answer) {
        let index = ANSWERS.iter().position(|(other, _)| *other == answer).expect("every answer is listed");
        self.answers[index] += 1;
    }

    pub(crate) fn add(&mut self, other: &Summary) {
        self.n_runs += other.n_runs;
        self.n_steps += other.n_steps;
        self.n_rows += other.n_rows;
        self.n_requests += other.n_requests;
        self.answers.iter_mut().zip(other.answers).for_each(|(sum, n)| *sum += n);
        self.n_preemptions += other.n_preemptions;
        self.n_hit += other.n_hit;
        self.n_missed += other.n_missed;
        self.n_copies += other.n_copies;
        self.n_grown += other.n_grown;
        self.n_collects += other.n_collects;
        self.largest_share = self.largest_share.max(other.largest_share);
        self.digest = self.digest.wrapping_add(other.digest);
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, n: u64| writeln!(f, "{name:<28}{n:>14}");
        line("runs", self.n_runs)?;
        line("steps", self.n_steps)?;
        line("rows", self.n_rows)?;
        line("requests", self.n_requests)?;
        for ((_, name), &n) in ANSWERS.iter().zip(&self.answers) {
            line(&format!("  ended by {name}"), n)?;
        }
        line("preemptions", self.n_preemptions)?;
        line("tokens found computed", self.n_hit)?;
        line("tokens not found", self.n_missed)?;
        line("pages copied", self.n_copies)?;
        line("pages grown", self.n_grown)?;
        line("steps read before another", self.n_collects)?;
        writeln!(f, "{:<28}{:>14.2}", "largest service gap / bound", self.largest_share)
    }
}
