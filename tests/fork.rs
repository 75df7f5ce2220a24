//! An engine's handle in a forked process, which has the memory of the engine and not its thread. In a binary of its own:
//! a fork copies one thread, and what the others hold at that moment, a lock or the allocator, stays held in the copy.
#![cfg(unix)]

use proxytune::Error;
use proxytune::checkpoint::Source;
use proxytune::engine::{BackendChoice, Draft, Engine, EngineOptions, Event, Request, Sampling, Trio, TrioSources};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

#[expect(unsafe_code, reason = "the standard library does not fork")]
unsafe extern "C" {
    safe fn fork() -> i32;
    safe fn kill(process: i32, signal: i32) -> i32;
    safe fn waitpid(process: i32, status: &mut i32, options: i32) -> i32;
    safe fn _exit(status: i32) -> !;
}

/// Numbers that all Unixes have in common.
const WNOHANG: i32 = 1;
const SIGKILL: i32 = 9;

/// What the child exits with. Not 0: so ends a process whose only thread has panicked.
const REFUSED: i32 = 7;

#[test]
fn a_forked_process_is_refused() {
    let source = |role: &str| Source::directory(format!("{}/demo/{role}", env!("CARGO_MANIFEST_DIR")));
    let trio = Arc::new(Trio::open(&TrioSources::alone(source("base")), &[]).expect("the demo's base opens"));
    let sampling = Sampling { max_tokens: 12, ignore_eos: true, ..Sampling::default() };
    let draft = Draft { prompts: std::array::from_fn(|_| vec![50, 60]), sampling, ..Draft::default() };
    let request = Request::new(draft.clone(), &trio.limits()).expect("it is within the limits");
    let options = EngineOptions { backend: BackendChoice::Cpu, ..EngineOptions::sized_for(&[draft]) };
    let engine = Engine::start(trio, options).expect("the engine starts");

    let of_child = request.clone();
    // Until the engine's thread has gone to sleep: what it holds while it runs would stay held in the child.
    thread::sleep(Duration::from_millis(100));
    match fork() {
        0 => {
            let refused = matches!(engine.generate(of_child), Err(Error::Device { backend: "engine", .. }));
            // Does not wait for a thread that is not there.
            drop(engine);
            _exit(if refused { REFUSED } else { 1 })
        }
        child => assert_eq!(status_of(child), REFUSED << 8, "the child is refused and goes"),
    }
    let events: Vec<Event> = engine.generate(request).expect("it runs").into_iter().collect();
    assert_eq!(events.len(), 13, "the parent is served on: 12 tokens and an end");
}

/// How a child ends, as `waitpid` says it. One that hangs is killed: a minute is for ever.
fn status_of(child: i32) -> i32 {
    let (start, mut status) = (Instant::now(), -1);
    loop {
        match waitpid(child, &mut status, WNOHANG) {
            0 if start.elapsed() < Duration::from_secs(60) => thread::sleep(Duration::from_millis(1)),
            0 => {
                kill(child, SIGKILL);
                waitpid(child, &mut status, 0);
                panic!("the child hangs");
            }
            ended => {
                assert_eq!(ended, child, "there is such a child");
                return status;
            }
        }
    }
}
