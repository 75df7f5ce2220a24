//! Requests that end before their time: cancelled, too late, too many. Nobody else notices.

use super::workload::Random;
use super::{alone, on_cpu, read, request, start, until, until_empty};
use proxytune::Error;
use proxytune::engine::{Completion, Draft, EngineOptions, Event, FinishReason, Handle, Sampling};
use std::thread;
use std::time::Duration;

/// A text that takes hundreds of steps.
fn long() -> Draft {
    let sampling = Sampling { max_tokens: 250, ignore_eos: true, seed: Some(1), ..Sampling::default() };
    Draft { prompts: std::array::from_fn(|role| vec![20 + role as u32, 30]), sampling, ..Draft::default() }
}

fn one_at_a_time() -> EngineOptions {
    on_cpu(1, &[long()])
}

fn generate(engine: &Handle, draft: Draft) -> proxytune::engine::EventStream {
    engine.generate(request(&draft)).expect("it comes in")
}

fn ids(completions: &[Completion]) -> Vec<&[u32]> {
    completions.iter().map(|completion| &completion.token_ids[..]).collect()
}

#[test]
fn a_queued_request_that_goes_leaves_the_running_one_alone() {
    let engine = start(one_at_a_time());
    let expected = alone(&engine, &long());
    let running = generate(&engine, long());
    let queued = generate(&engine, long());
    until("one waits", || engine.counts().waiting == 1);
    drop(queued);
    until("none waits", || engine.counts().waiting == 0);
    assert_eq!(ids(&read(running, 1)), ids(&expected));
    until_empty(&engine);
}

#[test]
fn who_waits_too_long_is_told_so() {
    let engine = start(one_at_a_time());
    let expected = alone(&engine, &long());
    let running = generate(&engine, long());
    let limit = Duration::from_millis(1);
    let late = read(generate(&engine, Draft { queue_timeout: Some(limit), ..long() }), 1).remove(0);
    assert_eq!(late.error, Some(Error::Timeout { param: "queue_timeout", limit }));
    assert_eq!((late.finish_reason, late.token_ids.len()), (FinishReason::Error, 0));
    assert_eq!(ids(&read(running, 1)), ids(&expected));
    // Who has a slot in time is not late, however long it runs.
    let in_time = Draft { queue_timeout: Some(Duration::from_secs(3600)), ..long() };
    assert_eq!(ids(&read(generate(&engine, in_time), 1)), ids(&expected));
    until_empty(&engine);
}

#[test]
fn who_runs_too_long_keeps_what_it_has() {
    let engine = start(one_at_a_time());
    let expected = alone(&engine, &long()).remove(0);
    let limit = Duration::from_millis(3);
    let late = read(generate(&engine, Draft { timeout: Some(limit), ..long() }), 1).remove(0);
    let error = late.error.expect("250 steps take longer than that");
    assert_eq!((&error, error.exit_code()), (&Error::Timeout { param: "timeout", limit }, 6));
    assert_eq!((error.kind(), error.param()), ("timeout_error", Some("timeout")));
    assert!(expected.token_ids.starts_with(&late.token_ids) && expected.text.starts_with(&late.text));
    // Of two equal limits one ends with the wait; the other still holds.
    let both = Draft { timeout: Some(limit), queue_timeout: Some(limit), ..long() };
    let late = read(generate(&engine, both), 1).remove(0).error;
    assert!(matches!(late, Some(Error::Timeout { .. })), "{late:?}");
    until_empty(&engine);
    assert_eq!(alone(&engine, &long())[0].token_ids, expected.token_ids);
}

#[test]
fn more_than_may_wait_are_refused_at_once() {
    let engine = start(EngineOptions { max_waiting: 2, ..one_at_a_time() });
    let mut running = generate(&engine, long()).into_iter();
    assert!(matches!(running.next(), Some(Event::Token { .. })), "it has its slot");
    let queued = [generate(&engine, long()), generate(&engine, long())];
    let refused = engine.generate(request(&long())).expect_err("two wait");
    assert_eq!(refused, Error::Overloaded { limit: 2 });
    assert_eq!((refused.exit_code(), refused.kind()), (6, "overloaded_error"));
    drop(queued);
    until("there is room again", || engine.generate(request(&long())).is_ok());
    // All or none of a request's samples.
    assert!(engine.generate(request(&Draft { n: 3, ..long() })).is_err());
    until("there is room for two", || engine.generate(request(&Draft { n: 2, ..long() })).is_ok());
    drop(running);
    until_empty(&engine);
}

/// Time limits of no, some and many steps on a pool of the least size: ends by time race with ends by stop strings and
/// lengths, and with preemptions. Every sample ends once (`read` sees to it), with a beginning of what it says alone.
#[test]
fn ends_race_with_each_other() {
    let mut random = Random(3);
    let drafts: Vec<Draft> = (0..200)
        .map(|index| {
            let n_prompt = 1 + random.below(60);
            let mut draft = long();
            draft.prompts = std::array::from_fn(|_| (0..n_prompt).map(|_| 10 + random.below(900) as u32).collect());
            draft.sampling.max_tokens = 1 + random.below(40) as u32;
            draft.stop = if index % 4 == 0 { vec!["e".into()] } else { Vec::new() };
            draft.n = 1 + index % 3;
            draft
        })
        .collect();
    let solo = start(on_cpu(3, &drafts));
    let expected: Vec<_> = drafts.iter().map(|draft| alone(&solo, draft)).collect();
    let engine = start(EngineOptions { kv_tokens: Some(1), ..on_cpu(16, &drafts) });
    let n_late = thread::scope(|scope| {
        let mut readers = Vec::new();
        for (draft, expected) in drafts.iter().zip(&expected) {
            let longest = random.of(&[1_000, 100_000, 10_000_000]);
            let timeout = Some(Duration::from_micros(1 + random.below(longest)));
            let (engine, draft) = (&engine, Draft { timeout, ..draft.clone() });
            readers.push(scope.spawn(move || {
                let done = read(generate(engine, draft.clone()), draft.n);
                let late = |(done, expected): &(&Completion, &Completion)| match done.error {
                    Some(Error::Timeout { .. }) => {
                        assert!(expected.token_ids.starts_with(&done.token_ids));
                        true
                    }
                    _ => {
                        assert_eq!((&done.text, &done.token_ids), (&expected.text, &expected.token_ids));
                        false
                    }
                };
                done.iter().zip(expected).filter(late).count()
            }));
        }
        readers.into_iter().map(|reader| reader.join().expect("a reader")).sum::<usize>()
    });
    println!("{n_late} late, {:?}", engine.counts());
    until_empty(&engine);
}
