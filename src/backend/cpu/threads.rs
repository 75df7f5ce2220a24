//! The threads of the CPU. An op takes microseconds and the next follows at once, so threads that have nothing to do
//! look for work for a while before they sleep: waking one costs as much as an op.

use super::simd::work::{Block, Grid, Place, Work};
use crate::{Error, Result};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread looks for work before it sleeps: longer than what the engine does between two steps.
const PATIENCE: Duration = Duration::from_micros(500);
/// Looks between two looks at the clock.
const LOOKS: usize = 256;
/// Operations that are done by one thread sooner than others have heard of them.
const ALONE: usize = 1 << 15;

/// The thread that owns it, and others that work for it.
pub(super) struct Threads {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// One thread gives out work.
    not_sync: PhantomData<Cell<()>>,
}

struct Shared {
    work: Work,
    /// Lists of tasks so far.
    n_calls: AtomicUsize,
    ends: AtomicBool,
    /// Of each thread.
    sleeps: Box<[AtomicBool]>,
    patience: Duration,
}

impl Threads {
    /// `n` threads, the caller's among them, or one for each core.
    pub(super) fn new(n: Option<usize>) -> Result<Self> {
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        let n = n.unwrap_or(n_cores).max(1);
        let shared = Arc::new(Shared {
            work: Work::new(n),
            n_calls: AtomicUsize::new(0),
            ends: AtomicBool::new(false),
            sleeps: (0..n).map(|_| AtomicBool::new(false)).collect(),
            // Who looks for work keeps others from theirs where cores are too few.
            patience: if n > n_cores { Duration::ZERO } else { PATIENCE },
        });
        let mut threads = Threads { shared, helpers: Vec::new(), not_sync: PhantomData };
        for index in 1..n {
            let shared = threads.shared.clone();
            let helper = std::thread::Builder::new().name(format!("cpu {index}")).spawn(move || shared.help(index));
            let error = |error| Error::device("cpu", format!("cannot start thread {index} of {n}: {error}"));
            threads.helpers.push(helper.map_err(error)?);
        }
        Ok(threads)
    }

    /// How many there are.
    pub(super) fn size(&self) -> usize {
        self.shared.work.n_threads()
    }

    /// Runs each task once; one task alone on this thread.
    pub(super) fn share<T: Send>(&self, tasks: &mut [T], run: impl Fn(&mut T) + Sync) {
        if self.size() == 1 || tasks.len() < 2 {
            return tasks.iter_mut().for_each(run);
        }
        let grid =
            Grid { cap: tasks.len(), width: 1, n_rows: [tasks.len(), 0], rows: 1, columns: 1, operations: usize::MAX };
        self.blocks(tasks, &grid, |_, mut block| block.row(0).iter_mut().for_each(&run));
    }

    /// Runs `task` once for each block of `values`; a few small ones on this thread.
    pub(super) fn blocks<T: Send>(&self, values: &mut [T], grid: &Grid, task: impl Fn(Place, Block<'_, T>) + Sync) {
        let call = || {
            if grid.operations > ALONE {
                self.call()
            }
        };
        self.shared.work.run_blocks(values, grid, &task, call);
    }

    /// Tells the others that there is work.
    fn call(&self) {
        self.shared.n_calls.fetch_add(1, Ordering::SeqCst);
        for (sleeps, helper) in self.shared.sleeps[1..].iter().zip(&self.helpers) {
            if sleeps.load(Ordering::SeqCst) && sleeps.swap(false, Ordering::SeqCst) {
                helper.thread().unpark();
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        self.call();
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of its tasks.
            let _ = helper.join();
        }
    }
}

impl Shared {
    fn help(&self, index: usize) {
        let mut n_calls = 0;
        while !self.ends.load(Ordering::SeqCst) {
            n_calls = self.next_call(index, n_calls);
            self.work.help(index);
        }
    }

    /// Waits until there were more calls than `n_calls`.
    fn next_call(&self, index: usize, n_calls: usize) -> usize {
        let start = Instant::now();
        loop {
            for _ in 0..LOOKS {
                let now = self.n_calls.load(Ordering::Acquire);
                if now != n_calls {
                    return now;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= self.patience {
                break;
            }
        }
        loop {
            self.sleeps[index].store(true, Ordering::SeqCst);
            // In this order: whoever calls later sees that this thread sleeps.
            let now = self.n_calls.load(Ordering::SeqCst);
            if now != n_calls {
                self.sleeps[index].store(false, Ordering::SeqCst);
                return now;
            }
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for n_threads in [1, 2, 3, 16] {
            let threads = Threads::new(Some(n_threads)).expect("threads start");
            for n_tasks in (0..40).chain([1000]) {
                let mut tasks = vec![0; n_tasks];
                threads.share(&mut tasks, |task| *task += 1);
                assert_eq!(tasks, vec![1; n_tasks]);
                if n_tasks % 16 == 0 {
                    std::thread::sleep(2 * PATIENCE); // so that some calls have to wake threads
                }
            }
        }
    }

    #[test]
    fn blocks_cover_the_rows_of_each_member_once() {
        let threads = Threads::new(Some(2)).expect("threads start");
        for (n_rows, rows, columns) in [([3, 0], 2, 4), ([0, 5], 2, 3), ([5, 4], 5, 10), ([4, 5], 1, 16)] {
            let (cap, width) = (5, 10);
            let mut values = vec![0; 2 * cap * width];
            let grid = Grid { cap, width, n_rows, rows, columns, operations: usize::MAX };
            threads.blocks(&mut values, &grid, |place, mut block| {
                assert!(place.rows.len() <= rows);
                for row in place.rows.clone() {
                    for (value, column) in block.row(row - place.rows.start).iter_mut().zip(place.columns.clone()) {
                        *value += 1 + (place.member * cap + row) * width + column;
                    }
                }
            });
            for (index, value) in values.into_iter().enumerate() {
                let (member, row) = (index / width / cap, index / width % cap);
                assert_eq!(value, if row < n_rows[member] { 1 + index } else { 0 });
            }
        }
    }

    #[test]
    fn a_panic_of_a_task_reaches_the_caller_and_the_threads_go_on() {
        let threads = Threads::new(Some(3)).expect("threads start");
        for bad in [0, 50, 99] {
            let mut tasks: Vec<usize> = (0..100).collect();
            let run = || threads.share(&mut tasks, |task| assert!(*task != bad, "task {bad} fails on purpose"));
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        }
        threads.share(&mut [0; 100], |_| ());
    }
}
