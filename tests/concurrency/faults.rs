//! A device that fails, or a thread that panics: every request that runs or waits fails with it, nothing more is served,
//! and nobody hangs.

use super::{on_cpu, read, request, trio};
use proxytune::backend::cpu::Cpu;
use proxytune::backend::params::Choice;
use proxytune::backend::*;
use proxytune::engine::{Draft, Engine, EngineOptions, FinishReason, Handle, Sampling};
use proxytune::{Error, Result};
use std::cell::Cell;
use std::ops::Range;

/// A call that fails on a device that is gone.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Upload,
    Submit,
    Collect,
}

/// What a call does then.
#[derive(Clone, Copy)]
enum Fault {
    Fails,
    Panics,
}

/// A CPU that is gone after `n_left` calls of one kind; from then on everything fails, as on a device that is lost.
struct Failing {
    inner: Cpu,
    call: Call,
    n_left: Cell<usize>,
    fault: Fault,
}

fn gone() -> Error {
    Error::device("cpu", "it is gone")
}

impl Failing {
    fn check(&self, call: Call) -> Result<()> {
        if call == self.call && self.n_left.get() > 0 {
            self.n_left.set(self.n_left.get() - 1);
        }
        match self.fault {
            _ if self.n_left.get() > 0 => Ok(()),
            Fault::Fails => Err(gone()),
            Fault::Panics => panic!("a planted panic"),
        }
    }
}

/// Ops are the CPU's own.
macro_rules! forward {
    ($($op:ident: $Op:ident { $($field:ident),* })*) => {
        $(fn $op(&self, pass: &mut Self::Pass, op: $Op<'_, Self>) {
            let $Op { $($field),* } = op;
            self.inner.$op(pass, $Op { $($field),* });
        })*
    };
}

impl Backend for Failing {
    type Buf = <Cpu as Backend>::Buf;
    type Matrix = <Cpu as Backend>::Matrix;
    type Pass = <Cpu as Backend>::Pass;
    type Receipt = <Cpu as Backend>::Receipt;

    /// As on a device that answers late.
    const LAG: usize = 3;

    fn product_error(weights: Dtype) -> f64 {
        Cpu::product_error(weights)
    }

    fn draw_dispatches(choice: Choice) -> usize {
        Cpu::draw_dispatches(choice)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn binding_limit(&self) -> u64 {
        self.inner.binding_limit()
    }

    fn free_memory(&self) -> Option<u64> {
        self.inner.free_memory()
    }

    fn alloc(&self, label: &'static str, words: usize) -> Result<Self::Buf> {
        self.inner.alloc(label, words)
    }

    fn upload(&self, buf: &Self::Buf, offset: usize, data: &[u8]) -> Result<()> {
        self.check(Call::Upload)?;
        self.inner.upload(buf, offset, data)
    }

    fn read(&self, buf: &Self::Buf, range: Range<usize>) -> Result<Vec<u8>> {
        self.inner.read(buf, range)
    }

    fn matrix(&self, spec: MatrixSpec, members: &[&dyn MatrixBytes]) -> Result<Self::Matrix> {
        self.inner.matrix(spec, members)
    }

    fn begin(&self) -> Self::Pass {
        self.inner.begin()
    }

    fn dispatches(&self, pass: &Self::Pass) -> usize {
        self.inner.dispatches(pass)
    }

    fn submit(&self, pass: Self::Pass, reads: &[(&Self::Buf, Range<usize>)]) -> Result<Self::Receipt> {
        self.check(Call::Submit)?;
        self.inner.submit(pass, reads)
    }

    fn collect(&self, receipt: Self::Receipt) -> Result<Vec<u8>> {
        self.check(Call::Collect)?;
        self.inner.collect(receipt)
    }

    forward! {
        copy_pages: CopyPages { plane, copies, n_copies, params }
        embed: Embed { x, places, table, rows, slots, extents, n_rows, params }
        norm_matmul: NormMatmul { y, w, x, gain, bias, gather, extents, n_rows, params }
        rope_append: RopeAppend { qkv, plane, places, page_table, rotary, q_gain, k_gain, extents, n_rows, params }
        attention: Attention { y, qkv, plane, places, page_table, extents, n_rows, params }
        matmul_add: MatmulAdd { x, w, y, bias, extents, n_rows, params }
        norm_add: NormAdd { x, y, gain, extents, n_rows, params }
        norm_gate_up: NormGateUp { h, w_gate, w_up, x, gain, extents, n_rows, params }
        combine_sample: CombineSample {
            slots, scores, counts, base, expert, anti, samples, constraints, n_samples, choice, params
        }
        record: Record { records, slots, scores, base, expert, anti, samples, constraints, n_samples, params }
    }
}

fn draft() -> Draft {
    let sampling = Sampling { max_tokens: 100, ignore_eos: true, ..Sampling::default() };
    Draft { prompts: std::array::from_fn(|role| vec![50 + role as u32, 60]), sampling, n: 2, ..Draft::default() }
}

/// An engine whose queue holds what the tests put there first, and nothing more.
fn start(fault: Fault, call: Call, n_left: usize) -> Handle {
    let open = move || Ok(Failing { inner: Cpu::new(Some(1))?, call, n_left: Cell::new(n_left), fault });
    let options = EngineOptions { max_waiting: 12, ..on_cpu(4, &[draft()]) };
    Engine::start_on(trio().clone(), options, open).expect("the engine starts")
}

#[test]
fn all_requests_fail_with_their_device() {
    // Uploads that fail come after those of loading, at the admission of some request.
    for (call, n_left) in [(Call::Submit, 1), (Call::Submit, 20), (Call::Collect, 20), (Call::Upload, 400)] {
        let engine = start(Fault::Fails, call, n_left);
        let submitted: Vec<_> =
            (0..6).map(|_| engine.generate(request(&draft())).expect("the engine takes it")).collect();
        for events in submitted {
            for completion in read(events, 2) {
                let ended = (completion.finish_reason, completion.error);
                assert_eq!(ended, (FinishReason::Error, Some(gone())), "{call:?} {n_left}");
            }
        }
        let counts = engine.counts();
        assert_eq!((counts.waiting, counts.running), (0, 0), "{call:?} {n_left}");
        // More of them than may wait at a time.
        for _ in 0..10 {
            for completion in read(engine.generate(request(&draft())).expect("the handle lives"), 2) {
                assert_eq!((completion.error, completion.token_ids.len()), (Some(gone()), 0));
            }
        }
    }
}

#[test]
fn every_sample_ends_though_the_thread_panics() {
    let is_lost = |error: &Error| matches!(error, Error::Device { backend: "engine", .. });
    for (call, n_left) in [(Call::Submit, 1), (Call::Submit, 20), (Call::Collect, 20)] {
        let engine = start(Fault::Panics, call, n_left);
        // Some run when it panics, some wait, and some come too late. More than may wait at a time follow.
        let submitted: Vec<_> = (0..6).map(|_| engine.generate(request(&draft()))).collect();
        let later = (0..10).map(|_| engine.generate(request(&draft())));
        for events in submitted.into_iter().chain(later) {
            match events {
                Ok(events) => {
                    let done = read(events, 2);
                    assert!(done.iter().all(|done| done.error.as_ref().is_some_and(is_lost)), "{call:?} {n_left}");
                }
                Err(error) => assert!(is_lost(&error), "{error}"),
            }
        }
        let counts = engine.counts();
        assert_eq!((counts.waiting, counts.running, counts.held), (0, 0, 0), "{call:?} {n_left}");
    }
}
