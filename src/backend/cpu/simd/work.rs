//! Work that threads share out: every task of a list runs once, on whichever thread takes it.
//!
//! Each thread has a span of the list, so that it walks through memory in order, and helps the others when it is
//! through. Nothing here starts, wakes or parks a thread: see `threads`.

use crate::backend::params::MAX_MEMBERS;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// A task by its index.
pub(in super::super) type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// Rounds of waiting for the last tasks after which the core is left to others.
const ROUNDS_TO_YIELD: usize = 1 << 12;

/// A list of tasks under way, or none.
pub(in super::super) struct Work {
    spans: Box<[Span]>,
    n_done: AtomicUsize,
    is_running: AtomicBool,
    has_panicked: AtomicBool,
    task: UnsafeCell<Option<&'static Task<'static>>>,
}

// SAFETY: `task` is written only by `run`, which `is_running` keeps alone, while no index can be taken; and read only
// by who has taken an index, before counting it as done.
unsafe impl Sync for Work {}

/// Until dropped, a list is under way: whoever leaves [`Work::run`], unwinding or not, first runs what is left of it and
/// waits for the others, so that nobody can reach a task that is gone.
struct Through<'a> {
    work: &'a Work,
    n_tasks: usize,
}

impl Drop for Through<'_> {
    fn drop(&mut self) {
        self.work.help(0);
        let mut rounds = 0;
        while self.work.n_done.load(Ordering::Acquire) < self.n_tasks {
            rounds += 1;
            if rounds < ROUNDS_TO_YIELD { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        self.work.is_running.store(false, Ordering::Release);
    }
}

/// Indices not yet taken, `next << 32 | end`, on cache lines of their own.
#[repr(align(128))]
struct Span(AtomicU64);

impl Span {
    fn take(&self) -> Option<usize> {
        let mut span = self.0.load(Ordering::Acquire);
        loop {
            let (next, end) = (span >> 32, span & u64::from(u32::MAX));
            if next == end {
                return None;
            }
            match self.0.compare_exchange_weak(span, span + (1 << 32), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(next as usize),
                Err(now) => span = now,
            }
        }
    }
}

impl Work {
    pub(in super::super) fn new(n_threads: usize) -> Self {
        Work {
            spans: (0..n_threads).map(|_| Span(AtomicU64::new(0))).collect(),
            n_done: AtomicUsize::new(0),
            is_running: AtomicBool::new(false),
            has_panicked: AtomicBool::new(false),
            task: UnsafeCell::new(None),
        }
    }

    pub(in super::super) fn n_threads(&self) -> usize {
        self.spans.len()
    }

    /// Runs `task(index)` for every index below `n_tasks`, as thread 0 and with the threads that `call` brings
    /// to [`Self::help`]. Panics if a task did, when all are through.
    pub(in super::super) fn run(&self, n_tasks: usize, task: &Task<'_>, call: impl FnOnce()) {
        assert!(u32::try_from(n_tasks).is_ok() && !self.is_running.swap(true, Ordering::Acquire));
        // SAFETY: nobody reads it, for all indices of the last list were counted as done before its `run` was left. The
        // lifetime is only said to be longer: who reads it has taken an index, and `through` waits for all of them.
        unsafe { *self.task.get() = Some(std::mem::transmute::<&Task<'_>, &'static Task<'static>>(task)) };
        self.n_done.store(0, Ordering::Relaxed);
        let n_threads = self.n_threads();
        for (thread, span) in self.spans.iter().enumerate() {
            let [next, end] = [thread, thread + 1].map(|t| (n_tasks * t / n_threads) as u64);
            span.0.store(next << 32 | end, Ordering::Release);
        }
        let through = Through { work: self, n_tasks };
        call();
        drop(through);
        assert!(!self.has_panicked.swap(false, Ordering::Relaxed), "a task panicked");
    }

    /// Runs tasks as thread `thread` until all are taken.
    pub(in super::super) fn help(&self, thread: usize) {
        let (mut n_done, n_threads) = (0, self.n_threads());
        for owner in (thread..n_threads).chain(0..thread) {
            while let Some(index) = self.spans[owner].take() {
                // SAFETY: the index is of the list under way, whose `run` waits until it is counted below.
                let task = unsafe { *self.task.get() }.expect("a list with indices has a task");
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task(index))) {
                    // Its drop might panic too, before the task is counted; the panic's message is already printed.
                    std::mem::forget(payload);
                    self.has_panicked.store(true, Ordering::Relaxed);
                }
                n_done += 1;
            }
        }
        if n_done > 0 {
            self.n_done.fetch_add(n_done, Ordering::Release);
        }
    }

    /// [`Self::run`] with a block of `values` for each task.
    pub(in super::super) fn run_blocks<T: Send>(
        &self,
        values: &mut [T],
        grid: &Grid,
        task: &(impl Fn(Place, Block<'_, T>) + Sync),
        call: impl FnOnce(),
    ) {
        let Grid { cap, width, n_rows, .. } = *grid;
        let fits = |(member, &n): (usize, &usize)| n <= cap && (n == 0 || (member * cap + n) * width <= values.len());
        assert!(n_rows.iter().enumerate().all(fits), "the rows of a grid are inside");
        let values = Values(values.as_mut_ptr());
        let task = |index: usize| {
            let place = grid.place(index);
            let first = (place.member * cap + place.rows.start) * width + place.columns.start;
            // SAFETY: inside, as asserted above.
            let first = unsafe { values.get().add(first) };
            let block = Block { first, width, rows: place.rows.len(), columns: place.columns.len(), of: PhantomData };
            task(place, block);
        };
        self.run(grid.n_blocks(), &task, call);
    }
}

/// Rows of each member of a `[members * cap][width]` buffer, cut into blocks of rows and columns: a block's neighbour
/// in its rows comes next.
pub(in super::super) struct Grid {
    pub(in super::super) cap: usize,
    pub(in super::super) width: usize,
    pub(in super::super) n_rows: [usize; MAX_MEMBERS],
    /// Most rows of a block; all have about as many.
    pub(in super::super) rows: usize,
    /// Columns of a block; the last of a row may have fewer.
    pub(in super::super) columns: usize,
    /// Vector operations that all blocks take together, about, times a vector's width.
    pub(in super::super) operations: usize,
}

/// Where a block is, rows counted within the member.
pub(in super::super) struct Place {
    pub(in super::super) member: usize,
    pub(in super::super) rows: Range<usize>,
    pub(in super::super) columns: Range<usize>,
}

impl Grid {
    fn n_blocks_of(&self, member: usize) -> usize {
        self.n_rows[member].div_ceil(self.rows) * self.width.div_ceil(self.columns)
    }

    pub(in super::super) fn n_blocks(&self) -> usize {
        (0..MAX_MEMBERS).map(|member| self.n_blocks_of(member)).sum()
    }

    fn place(&self, mut index: usize) -> Place {
        let mut member = 0;
        while index >= self.n_blocks_of(member) {
            index -= self.n_blocks_of(member);
            member += 1;
        }
        let (n_rows, n_columns) = (self.n_rows[member], self.width.div_ceil(self.columns));
        let (n, row, column) = (n_rows.div_ceil(self.rows), index / n_columns, index % n_columns * self.columns);
        let rows = n_rows * row / n..n_rows * (row + 1) / n;
        Place { member, rows, columns: column..self.width.min(column + self.columns) }
    }
}

/// The elements of a block, which nobody else has.
pub(in super::super) struct Block<'a, T> {
    first: *mut T,
    width: usize,
    rows: usize,
    columns: usize,
    of: PhantomData<&'a mut [T]>,
}

impl<T> Block<'_, T> {
    /// Row `row` of the block.
    #[inline(always)]
    pub(in super::super) fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows);
        // SAFETY: the block is inside its buffer; blocks of a grid do not overlap, each index is run once, and the
        // buffer is borrowed until all have run.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.width), self.columns) }
    }
}

/// The start of a buffer whose blocks go to different threads.
struct Values<T>(*mut T);

// SAFETY: threads get different elements of it, which may be sent.
unsafe impl<T: Send> Sync for Values<T> {}

impl<T> Values<T> {
    /// A method, so that closures borrow the whole.
    fn get(&self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_run_whole_where_its_caller_unwinds() {
        let (work, n_run) = (Work::new(2), AtomicUsize::new(0));
        let task = |_| {
            n_run.fetch_add(1, Ordering::Relaxed);
        };
        let run = || work.run(10, &task, || panic!("fails on purpose"));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        assert_eq!(n_run.load(Ordering::Relaxed), 10);
        work.run(5, &task, || ());
        assert_eq!(n_run.load(Ordering::Relaxed), 15);
    }
}
