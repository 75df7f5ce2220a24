//! One launch of an op with its inputs on the host, and the checks that every launch goes through.

use super::Report;
use super::compare::{Output, Want, compare, same_bits};
use crate::Result;
use crate::backend::Backend;
use std::fmt::Debug;
use std::ops::Range;

/// What memory holds where nothing is defined: NaN as f32, and in both halves as f16 and bf16.
pub(super) const POISON: u32 = 0x7fc1_7fc1;

/// Rows of the largest company of [`Check::in_company`].
pub(super) const COMPANY: usize = 300;

/// Rows of the largest launch of [`Check::over_long_rows`].
const LONG_ROWS: usize = 27;

/// An op with its inputs on the host. Its `Debug` text names it in messages.
pub(super) trait Launch: Debug {
    /// Runs it on a backend; the whole of every output buffer.
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>>;
    /// What each output must be, by plain arithmetic in f64.
    fn expected(&self) -> Vec<Vec<Want>>;
    /// All that row `index` (of member 0) wrote.
    fn row(&self, outputs: &[Output], index: usize) -> Vec<u32>;
}

/// What a backend is compared with, beside plain arithmetic.
pub(super) enum Yardstick<'a, T> {
    /// Nothing.
    Arithmetic,
    /// Within the tolerance of this backend.
    Near(&'a T),
    /// The bits of this backend.
    Bits(&'a T),
}

impl<T> Clone for Yardstick<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Yardstick<'_, T> {}

/// The checks of one op on one backend, as they add up to its line of the report.
pub(super) struct Check<'a, B, T> {
    backend: &'a B,
    yardstick: Yardstick<'a, T>,
    /// Whether the case of a number is run.
    is_chosen: &'a dyn Fn(usize) -> bool,
    /// The number of the next case.
    next: usize,
    cases: usize,
    worst: f64,
    failures: Vec<String>,
    /// The launch whose first element is damaged, to prove that it shows.
    #[cfg(test)]
    pub(super) damaged: Option<usize>,
    #[cfg(test)]
    launches: usize,
}

impl<'a, B: Backend, T: Backend> Check<'a, B, T> {
    pub(super) fn new(backend: &'a B, yardstick: Yardstick<'a, T>) -> Self {
        Self {
            backend,
            yardstick,
            is_chosen: &|_| true,
            next: 0,
            cases: 0,
            worst: 0.0,
            failures: Vec::new(),
            #[cfg(test)]
            damaged: None,
            #[cfg(test)]
            launches: 0,
        }
    }

    /// Only the cases that are chosen.
    pub(super) fn only(self, is_chosen: &'a dyn Fn(usize) -> bool) -> Self {
        Self { is_chosen, ..self }
    }

    /// Whether the next case is one of those that are not run.
    fn skips(&mut self) -> bool {
        self.next += 1;
        !(self.is_chosen)(self.next - 1)
    }

    /// Runs a launch and compares every element of every output.
    pub(super) fn launch(&mut self, launch: &impl Launch) -> Result<()> {
        if self.skips() {
            return Ok(());
        }
        let got = self.run(launch)?;
        let twin = match self.yardstick {
            Yardstick::Arithmetic => None,
            Yardstick::Near(twin) | Yardstick::Bits(twin) => Some(launch.run(twin)?),
        };
        let wants = launch.expected();
        assert_eq!(wants.len(), got.len(), "every output is compared");
        for (index, (want, got)) in wants.iter().zip(&got).enumerate() {
            let twin = twin.as_ref().map(|twin| &twin[index]);
            let result = match (&self.yardstick, twin) {
                (Yardstick::Bits(_), Some(twin)) => same_bits(want, got, twin),
                (_, twin) => compare(want, got, twin),
            };
            self.tally(result, launch);
        }
        self.cases += 1;
        Ok(())
    }

    /// The rows of a launch of [`COMPANY`] against the same rows in smaller launches. `rows` makes the launch of a range
    /// of rows, all of member 0. The last rows are taken, so that a row's place in the launch differs too.
    pub(super) fn in_company<L: Launch>(&mut self, rows: impl Fn(Range<usize>) -> L) -> Result<()> {
        self.last_rows(COMPANY, [1, 2, 5, 9, 17, 64], rows)
    }

    /// A launch of [`LONG_ROWS`] rows by its elements, and against the same rows in smaller launches.
    pub(super) fn over_long_rows<L: Launch>(&mut self, rows: impl Fn(Range<usize>) -> L) -> Result<()> {
        self.launch(&rows(0..LONG_ROWS))?;
        self.last_rows(LONG_ROWS, [1, 6, 13], rows)
    }

    /// The rows of a launch of `n` against the same rows in launches of the last ones.
    fn last_rows<L: Launch, const N: usize>(
        &mut self,
        n: usize,
        parts: [usize; N],
        rows: impl Fn(Range<usize>) -> L,
    ) -> Result<()> {
        let places = |range: Range<usize>| (0..range.len()).map(move |row| (row, range.start + row)).collect();
        let part = |n_rows: usize| (rows(n - n_rows..n), places(n - n_rows..n));
        self.same_rows(&rows(0..n), parts.map(part))
    }

    /// Bit for bit the rows of smaller launches against those of a whole: each pair is a row of the part, and its
    /// place in the whole.
    pub(super) fn same_rows<L: Launch>(
        &mut self,
        whole: &L,
        parts: impl IntoIterator<Item = (L, Vec<(usize, usize)>)>,
    ) -> Result<()> {
        if self.skips() {
            return Ok(());
        }
        let in_whole = self.run(whole)?;
        for (part, places) in parts {
            let in_part = self.run(&part)?;
            let differs = |&&(row, place): &&(usize, usize)| part.row(&in_part, row) != whole.row(&in_whole, place);
            let result = match places.iter().find(differs) {
                Some((row, place)) => Err(format!("row {row} is not as row {place} in company")),
                None => Ok(0.0),
            };
            self.tally(result, &part);
            self.cases += 1;
        }
        Ok(())
    }

    #[cfg(not(test))]
    fn run(&self, launch: &impl Launch) -> Result<Vec<Output>> {
        launch.run(self.backend)
    }

    #[cfg(test)]
    fn run(&mut self, launch: &impl Launch) -> Result<Vec<Output>> {
        let mut outputs = launch.run(self.backend)?;
        if self.damaged == Some(self.launches) {
            outputs[0].bits[0] ^= 1 << 31;
        }
        self.launches += 1;
        Ok(outputs)
    }

    fn tally(&mut self, result: std::result::Result<f64, String>, launch: &impl Launch) {
        match result {
            Ok(share) => self.worst = self.worst.max(share),
            Err(message) => self.failures.push(format!("{message} in {launch:?}")),
        }
    }

    /// The line of an op, of the backend named `backend`.
    pub(super) fn report(self, backend: &str, op: &'static str) -> Report {
        let passed = self.failures.is_empty();
        let detail = match self.failures.first() {
            Some(first) => format!("{} of {} cases fail; {first}", self.failures.len(), self.cases),
            None => String::new(),
        };
        let worst = if passed { self.worst } else { f64::INFINITY };
        Report { backend: backend.into(), op, cases: self.cases, worst, passed, detail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    /// Two words per row: its number in all launches, and its place in this one where `leaks`.
    #[derive(Debug)]
    struct Rows {
        range: Range<usize>,
        leaks: bool,
    }

    impl Launch for Rows {
        fn run<B: Backend>(&self, _: &B) -> Result<Vec<Output>> {
            let row = |(place, row): (usize, usize)| [row as u32, if self.leaks { place as u32 } else { 0 }];
            Ok(vec![Output::words("y", self.range.clone().enumerate().flat_map(row).collect())])
        }

        fn expected(&self) -> Vec<Vec<Want>> {
            vec![vec![Want::Any; 2 * self.range.len()]]
        }

        fn row(&self, outputs: &[Output], index: usize) -> Vec<u32> {
            outputs[0].bits[2 * index..][..2].to_vec()
        }
    }

    #[test]
    fn a_row_that_depends_on_its_company_fails() {
        let cpu = Cpu::new(None).expect("the CPU is here");
        for leaks in [false, true] {
            let mut check = Check::<_, Cpu>::new(&cpu, Yardstick::Arithmetic);
            check.in_company(|range| Rows { range, leaks }).expect("nothing runs");
            let line = check.report("cpu", "rows");
            assert_eq!((line.passed, line.cases), (!leaks, 6), "{line:?}");
        }
    }
}
