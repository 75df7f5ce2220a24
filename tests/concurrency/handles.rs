//! Handles and streams as programs use them: from many threads, as futures, dropped early.

use super::workload::mixed;
use super::{alone, on_cpu, read, request, start};
use proxytune::engine::{Draft, EngineOptions, Event, EventStream, Handle, Sampling};
use std::future::poll_fn;
use std::pin::Pin;
use std::thread;

fn short() -> Draft {
    let sampling = Sampling { max_tokens: 12, ignore_eos: true, ..Sampling::default() };
    Draft { prompts: std::array::from_fn(|role| vec![50 + role as u32, 60]), sampling, ..Draft::default() }
}

fn options() -> EngineOptions {
    on_cpu(4, &[short()])
}

#[test]
fn a_handle_is_for_all_threads() {
    fn is_shared<T: Send + Sync + Clone>() {}
    fn is_sent<T: Send>() {}
    is_shared::<Handle>();
    is_sent::<EventStream>();

    let engine = start(options());
    let expected = alone(&engine, &short()).remove(0).token_ids;
    thread::scope(|scope| {
        for _ in 0..64 {
            let (engine, expected) = (engine.clone(), &expected);
            scope.spawn(move || assert_eq!(alone(&engine, &short()).remove(0).token_ids, *expected));
        }
    });
}

#[test]
fn a_stream_is_asynchronous_too() {
    use futures_core::Stream;
    let engine = start(options());
    let mut events = engine.generate(request(&short())).expect("it runs");
    let collected = pollster::block_on(async {
        let mut collected = Vec::new();
        while let Some(event) = poll_fn(|context| Pin::new(&mut events).poll_next(context)).await {
            collected.push(event);
        }
        collected
    });
    assert_eq!(collected.len(), 13, "12 tokens and an end");
    assert!(matches!(&collected[12], Event::Done { completion, .. } if completion.token_ids.len() == 12));
}

#[test]
fn the_last_handle_waits_for_what_runs() {
    let engine = start(options());
    let (kept, dropped) = (engine.clone(), engine.generate(request(&short())).expect("it runs"));
    drop(dropped);
    let events = engine.generate(request(&short())).expect("it runs");
    drop(engine);
    drop(kept);
    // The thread has ended, and all events are there.
    assert_eq!(read(events, 1)[0].token_ids.len(), 12);
}

#[test]
fn two_engines_in_one_process_do_not_know_each_other() {
    let drafts = mixed(12, 12);
    let options = EngineOptions { threads: Some(1), ..on_cpu(4, &drafts) };
    let engines = [start(options.clone()), start(options)];
    let said = engines.each_ref().map(|engine| {
        let events: Vec<_> = drafts.iter().map(|draft| engine.generate(request(draft)).expect("it runs")).collect();
        (events, engine)
    });
    let said = said.map(|(events, _)| {
        let done = events.into_iter().zip(&drafts).flat_map(|(events, draft)| read(events, draft.n));
        done.map(|completion| (completion.text, completion.token_ids)).collect::<Vec<_>>()
    });
    assert_eq!(said[0], said[1]);
}
