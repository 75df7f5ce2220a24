//! Every request that is finished equals its solo run, byte for byte: text, ids, log-probabilities. With debug
//! assertions all pages are full of NaN when they are given out.

use super::workload::{Random, Workload, mixed};
use super::{Handle, alone, on_cpu, read, request, start, until_empty};
use proxytune::engine::scheduler::TenantId;
use proxytune::engine::{BackendChoice, Completion, Draft, EngineOptions, Sampling};
use std::thread;

/// All but the times, the record as bits.
fn assert_equal(alone: &[Completion], together: &[Completion], what: &str) {
    assert_eq!(alone.len(), together.len());
    for (sample, (alone, together)) in alone.iter().zip(together).enumerate() {
        let said = |completion: &Completion| {
            let Completion { text, token_ids, finish_reason, error, seed, .. } = completion.clone();
            (text, token_ids, finish_reason, error, seed)
        };
        assert_eq!(said(alone), said(together), "{what}, sample {sample}");
        let bits = |completion: &Completion| bytemuck::cast_slice::<_, u8>(&completion.record).to_vec();
        assert_eq!(bits(alone), bits(together), "{what}, sample {sample}: the record");
    }
}

#[derive(Clone, Copy, Debug)]
struct Setting {
    /// Prompt rows per model and step.
    prefill_rows: usize,
    /// Whether the pool holds no more than the longest request, so that requests preempt each other.
    least_pool: bool,
    /// Whether requests find each other's prompts.
    shares_prompts: bool,
}

/// Runs all requests at once, in random order, one thread each; every fifth reader leaves before the end.
fn run_together(workload: &Workload, options: EngineOptions, setting: Setting) {
    let Setting { prefill_rows, least_pool, shares_prompts } = setting;
    let kv_tokens = least_pool.then_some(1);
    let engine = start(EngineOptions { prefill_rows, kv_tokens, ..options });
    let mut random = Random(prefill_rows as u64);
    let mut order: Vec<usize> = (0..workload.drafts.len()).collect();
    random.shuffle(&mut order);
    thread::scope(|scope| {
        for index in order {
            let mut draft = workload.drafts[index].clone();
            if !shares_prompts {
                draft.tenant = TenantId(index as u64);
            }
            let leaves_after = (random.below(5) == 0).then(|| random.below(30));
            let (engine, alone) = (&engine, &workload.alone[index]);
            scope.spawn(move || {
                let events = engine.generate(request(&draft)).expect("it comes in");
                match leaves_after {
                    Some(n_events) => drop(events.into_iter().take(n_events as usize).count()),
                    None => assert_equal(alone, &read(events, draft.n), &format!("{setting:?}, request {index}")),
                }
            });
        }
    });
    check_counts(&engine, setting);
}

/// What was to happen has happened, and nothing is left of it.
fn check_counts(engine: &Handle, Setting { least_pool, shares_prompts, .. }: Setting) {
    until_empty(engine);
    let counts = engine.counts();
    println!("{counts:?}");
    assert_eq!(counts.preemptions > 0, least_pool, "{counts:?}");
    assert!(counts.hit_tokens > 0 || !shares_prompts, "{counts:?}");
}

fn settings(prefill_rows: &[usize]) -> impl Iterator<Item = Setting> {
    prefill_rows.iter().flat_map(|&prefill_rows| {
        [(false, true), (true, true), (false, false), (true, false)].map(|(least_pool, shares_prompts)| Setting {
            prefill_rows,
            least_pool,
            shares_prompts,
        })
    })
}

#[test]
fn two_hundred_at_once_are_each_as_if_alone_on_cpu() {
    let workload = Workload::on_cpu();
    for setting in settings(&[1, 7, 64]) {
        run_together(&workload, on_cpu(16, &workload.drafts), setting);
    }
}

/// A software driver takes a hundred times as long for a step of the demo: fewer requests, two settings.
#[test]
fn twenty_four_at_once_are_each_as_if_alone_on_wgpu() {
    let some = [(7, true), (64, false)];
    let setting = |(prefill_rows, least_pool)| Setting { prefill_rows, least_pool, shares_prompts: true };
    on_wgpu(mixed(24, 48), some.map(setting).into_iter());
}

#[test]
#[ignore = "takes a quarter of an hour on a software driver: `scripts/test --test concurrency -- --ignored`"]
fn two_hundred_at_once_are_each_as_if_alone_on_wgpu() {
    on_wgpu(mixed(200, 48), settings(&[1, 7, 64]));
}

fn on_wgpu(drafts: Vec<Draft>, settings: impl Iterator<Item = Setting>) {
    let options = EngineOptions { backend: BackendChoice::Wgpu, ..on_cpu(6, &drafts) };
    let workload = Workload::new(drafts, &start(EngineOptions { n_slots: 4, ..options.clone() }));
    settings.for_each(|setting| run_together(&workload, options.clone(), setting));
}

/// Greedy samples are one text: a fork is a copy, whether the prompt ends within a page or with it, and whatever its
/// siblings append to theirs.
#[test]
fn samples_fork_from_the_first() {
    for backend in [BackendChoice::Cpu, BackendChoice::Wgpu] {
        // Pages of the base hold 16 tokens.
        for n_prompt in [1, 2, 15, 16, 17, 33] {
            let prompts = std::array::from_fn(|role| (0..n_prompt).map(|i| 7 * i + role as u32 + 100).collect());
            let sampling = Sampling { max_tokens: 20, ignore_eos: true, seed: Some(1), ..Sampling::default() };
            let one = Draft { prompts, sampling, record: Some(2), ..Draft::default() };
            let options = EngineOptions { backend, ..on_cpu(4, std::slice::from_ref(&one)) };
            let engine = start(options);
            let expected = alone(&engine, &one).remove(0);
            // Another tenant, who finds nothing.
            let four = alone(&engine, &Draft { n: 4, tenant: TenantId(1), ..one });
            assert_equal(&vec![expected; 4], &four, &format!("{backend:?}, {n_prompt} tokens"));
            assert!(n_prompt == 1 || engine.counts().hit_tokens > 0, "{n_prompt}: {:?}", engine.counts());
        }
    }
}
