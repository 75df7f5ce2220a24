//! What tenants get of the machine while they wait for more of it.

use proxytune::engine::scheduler::TenantId;

/// Rows that tenants were served, and the rows of the largest request.
pub(crate) struct Fairness {
    n_slots: u64,
    pub(crate) served: Vec<u64>,
    /// Rows that each tenant's unanswered requests can take at most.
    outstanding: Vec<u64>,
    /// Per pair, the least and the largest `served[i] - served[j]` since both wait.
    spans: Vec<Option<(i64, i64)>>,
    most_prompt_rows: u64,
    most_response_rows: u64,
    /// The largest gap seen, as a share of what is allowed.
    pub(crate) largest_share: f64,
}

impl Fairness {
    pub(crate) fn new(n_slots: usize, n_tenants: usize) -> Self {
        Self {
            n_slots: n_slots as u64,
            served: vec![0; n_tenants],
            outstanding: vec![0; n_tenants],
            spans: vec![None; n_tenants * n_tenants],
            most_prompt_rows: 0,
            most_response_rows: 0,
            largest_share: 0.0,
        }
    }

    /// Takes in a request, and says how many rows may be computed before it comes in. Its own tenant has that much to do
    /// first; every other is served no more than that and 2 U, beside U that runs already; each row may be computed
    /// again in each of three preemptions.
    pub(crate) fn arrive(&mut self, tenant: TenantId, prompt_rows: usize, response_rows: usize) -> u64 {
        self.most_prompt_rows = self.most_prompt_rows.max(prompt_rows as u64);
        self.most_response_rows = self.most_response_rows.max(response_rows as u64);
        let outstanding = &mut self.outstanding[tenant.0 as usize];
        *outstanding += (prompt_rows + response_rows) as u64;
        let before = *outstanding;
        4 * self.served.len() as u64 * (before + 3 * self.most_between_turns())
    }

    pub(crate) fn answered(&mut self, tenant: TenantId, rows: usize) {
        self.outstanding[tenant.0 as usize] -= rows as u64;
    }

    /// U: what a tenant can be served after its last turn, with which it had the least service. That is the prompt that
    /// came in then, and the responses of all slots.
    fn most_between_turns(&self) -> u64 {
        self.most_prompt_rows + self.n_slots * self.most_response_rows
    }

    /// Takes in what a step served, and whose requests waited for nothing but their turn all the time since the step
    /// before. While two tenants wait so, what they are served grows apart by at most 2 U (arXiv 2401.00588, theorem 4.4).
    pub(crate) fn step(&mut self, served: &[u64], backlogged: &[bool]) {
        self.served.iter_mut().zip(served).for_each(|(sum, &rows)| *sum += rows);
        let n = self.served.len();
        let limit = 2 * self.most_between_turns();
        for (i, j) in (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))) {
            let lead = self.served[i] as i64 - self.served[j] as i64;
            let span = &mut self.spans[i * n + j];
            if !backlogged[i] || !backlogged[j] {
                *span = None;
                continue;
            }
            let (low, high) = span.unwrap_or((lead, lead));
            let (low, high) = (low.min(lead), high.max(lead));
            *span = Some((low, high));
            let gap = high.abs_diff(low);
            assert!(gap <= limit, "of two tenants that wait, one was served {gap} rows more; {limit} are allowed");
            self.largest_share = self.largest_share.max(gap as f64 / limit as f64);
        }
    }
}
