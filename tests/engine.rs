//! The truths of proxy tuning and of batching, end to end on both backends: what must be equal is compared as ids.
//!
//! The models are the golden trios: random loud weights, so that every id depends on every row and a mistake shows.
//! With debug assertions the pool starts full of NaN, so each of these tests also runs on a poisoned pool.

use proxytune::backend::Dtype;
use proxytune::backend::params::MAX_RECORD_TOP;
use proxytune::checkpoint::Source;
use proxytune::engine::event::{Completion, Event, FinishReason};
use proxytune::engine::request::{Draft, Mode, Request, Sampling};
use proxytune::engine::trio::{Trio, TrioSources};
use proxytune::engine::{BackendChoice, Engine, EngineOptions};
use proxytune::{Error, Result};
use std::sync::Arc;

const BACKENDS: [BackendChoice; 2] = [BackendChoice::Cpu, BackendChoice::Wgpu];
const TRIOS: [&str; 3] = ["llama", "qwen2", "mixed"];

fn source(trio: &str, role: &str) -> Source {
    Source::directory(format!("{}/tests/golden/{trio}/{role}", env!("CARGO_MANIFEST_DIR")))
}

fn open(trio: &str, [base, expert, anti]: [Option<&str>; 3]) -> Arc<Trio> {
    let role = |name: &str| source(trio, name);
    let base = role(base.expect("a base"));
    let sources = TrioSources { base, expert: expert.map(role), anti_expert: anti.map(role) };
    Arc::new(Trio::open(&sources, &[]).expect("the golden trio opens"))
}

fn whole(trio: &str) -> Arc<Trio> {
    open(trio, [Some("base"), Some("expert"), Some("anti-expert")])
}

fn options(backend: BackendChoice, requests: &[Draft]) -> EngineOptions {
    EngineOptions { backend, kv_cache_dtype: Some(Dtype::F32), ..EngineOptions::sized_for(requests) }
}

fn checked(trio: &Trio, drafts: Vec<Draft>) -> Result<Vec<Request>> {
    drafts.into_iter().map(|draft| Request::new(draft, &trio.limits())).collect()
}

fn try_run(trio: &Arc<Trio>, options: EngineOptions, requests: Vec<Draft>) -> Result<Vec<Completion>> {
    let mut completions = vec![None; requests.len()];
    let engine = Engine::start(trio.clone(), options)?;
    for event in engine.submit(checked(trio, requests)?)? {
        if let Event::Done { sample, completion } = event {
            assert!(completions[sample].replace(*completion).is_none(), "one end per request");
        }
    }
    Ok(completions.into_iter().map(|completion| completion.expect("every request ends")).collect())
}

fn run(trio: &Arc<Trio>, options: EngineOptions, requests: Vec<Draft>) -> Vec<Completion> {
    try_run(trio, options, requests).expect("the engine runs")
}

fn ids(trio: &Arc<Trio>, backend: BackendChoice, requests: Vec<Draft>) -> Vec<Vec<u32>> {
    let options = options(backend, &requests);
    run(trio, options, requests).into_iter().map(|completion| completion.token_ids).collect()
}

/// Prompts of three different lengths, the long ones over a key block and several pages.
fn request(seed: u32, alpha: f32) -> Draft {
    let prompt = |role: u32| {
        let length = 3 + (seed * 37 + role * 11) % 90;
        (0..length).map(|i| (seed * 101 + role * 57 + i * i * 13 + i * 7) % 290).collect()
    };
    let sampling = Sampling { alpha, max_tokens: 20, ignore_eos: true, ..Sampling::default() };
    Draft { prompts: [prompt(0), prompt(1), prompt(2)], sampling, ..Draft::default() }
}

fn sampled(seed: u32, alpha: f32) -> Draft {
    let mut request = request(seed, alpha);
    request.sampling.temperature = 0.8;
    request.sampling.top_p = 0.95;
    request.sampling.seed = Some(u64::from(seed));
    request
}

/// Prompts equal in the three roles.
fn same_prompt(mut request: Draft) -> Draft {
    request.prompts = std::array::from_fn(|_| request.prompts[0].clone());
    request
}

#[test]
fn alpha_zero_is_the_base_alone() {
    for (name, backend) in TRIOS.iter().flat_map(|name| BACKENDS.map(|backend| (name, backend))) {
        let alone = open(name, [Some("base"), None, None]);
        let requests = || (0..4).map(|seed| sampled(seed, 0.0)).collect();
        assert_eq!(ids(&whole(name), backend, requests()), ids(&alone, backend, requests()), "{name} on {backend:?}");
    }
}

/// Beside combined requests, and with penalties, which count the prompt of the model that runs.
#[test]
fn a_mode_runs_one_model_as_if_it_were_the_only_one() {
    // An engine on a software driver takes seconds to start: one trio there, whose pair is one launch.
    let on_cpu = TRIOS.map(|name| (name, BackendChoice::Cpu));
    for (name, backend) in on_cpu.into_iter().chain([("llama", BackendChoice::Wgpu)]) {
        for (mode, role, prompt) in [(Mode::BaseOnly, "base", 0), (Mode::ExpertOnly, "expert", 1)] {
            let alone = open(name, [Some(role), None, None]);
            let drafts: Vec<Draft> = (0..3)
                .map(|seed| {
                    let mut draft = sampled(seed, 1.5);
                    draft.sampling.repetition_penalty = 1.3;
                    draft
                })
                .collect();
            let only = drafts.iter().map(|draft| {
                let prompts = std::array::from_fn(|_| draft.prompts[prompt].clone());
                Draft { prompts, mode: Mode::BaseOnly, ..draft.clone() }
            });
            let expected = ids(&alone, backend, only.collect());
            let beside = drafts.iter().flat_map(|draft| [Draft { mode, ..draft.clone() }, draft.clone()]).collect();
            let together: Vec<_> = ids(&whole(name), backend, beside).into_iter().step_by(2).collect();
            assert_eq!(together, expected, "{name} on {backend:?}, {mode:?}");
        }
    }
}

#[test]
fn equal_expert_and_anti_expert_leave_the_base() {
    for backend in BACKENDS {
        let equal = open("llama", [Some("base"), Some("expert"), Some("expert")]);
        let alone = open("llama", [Some("base"), None, None]);
        for alpha in [-3.0, 0.5, 100.0] {
            let requests = |alpha| (0..3).map(|seed| same_prompt(sampled(seed, alpha))).collect::<Vec<_>>();
            assert_eq!(ids(&equal, backend, requests(alpha)), ids(&alone, backend, requests(0.0)), "alpha {alpha}");
        }
    }
}

#[test]
fn exchanging_the_pair_and_the_sign_of_alpha_changes_nothing() {
    for (name, backend) in TRIOS.iter().flat_map(|name| BACKENDS.map(|backend| (name, backend))) {
        let swapped = open(name, [Some("base"), Some("anti-expert"), Some("expert")]);
        let requests: Vec<Draft> = (0..3).map(|seed| sampled(seed, 1.5)).collect();
        let mut mirrored = requests.clone();
        for request in &mut mirrored {
            request.sampling.alpha = -1.5;
            request.prompts.swap(1, 2);
        }
        assert_eq!(ids(&whole(name), backend, requests), ids(&swapped, backend, mirrored), "{name} on {backend:?}");
    }
}

#[test]
fn base_as_anti_expert_gives_the_expert() {
    for backend in BACKENDS {
        // b + (e - b) rounds, so equality is of greedy ids; the golden's margins are far above that rounding.
        let trio = open("llama", [Some("base"), Some("expert"), None]);
        let expert = open("llama", [Some("expert"), None, None]);
        let requests = |alpha| (0..3).map(|seed| same_prompt(request(seed, alpha))).collect::<Vec<_>>();
        assert_eq!(ids(&trio, backend, requests(1.0)), ids(&expert, backend, requests(0.0)));
    }
}

#[test]
fn company_changes_nothing() {
    for (name, backend) in TRIOS.iter().flat_map(|name| BACKENDS.map(|backend| (name, backend))) {
        let trio = whole(name);
        let requests: Vec<Draft> =
            (0..12).map(|seed| sampled(seed, [0.0, 1.0, -0.5, 2.5][seed as usize % 4])).collect();
        let together = ids(&trio, backend, requests.clone());
        for (index, request) in requests.iter().enumerate().step_by(3) {
            let alone = ids(&trio, backend, vec![request.clone()]);
            assert_eq!(alone[0], together[index], "{name} on {backend:?}, request {index}");
        }
        // Two slots for twelve requests: slots and pages are used again.
        let few = EngineOptions { n_slots: 2, ..options(backend, &requests) };
        let recycled: Vec<Vec<u32>> = run(&trio, few, requests).into_iter().map(|c| c.token_ids).collect();
        assert_eq!(recycled, together, "{name} on {backend:?}, two slots");
    }
}

#[test]
fn chunking_the_prompts_changes_nothing() {
    for backend in BACKENDS {
        let trio = whole("llama");
        let requests: Vec<Draft> = (0..5).map(|seed| sampled(seed, 1.0)).collect();
        let whole = ids(&trio, backend, requests.clone());
        for prefill_rows in [1, 7, 64] {
            let chunked = EngineOptions { prefill_rows, ..options(backend, &requests) };
            let chunked: Vec<Vec<u32>> =
                run(&trio, chunked, requests.clone()).into_iter().map(|c| c.token_ids).collect();
            assert_eq!(chunked, whole, "{prefill_rows} rows at a time on {backend:?}");
        }
    }
}

#[test]
fn texts_end_where_they_should() {
    for backend in BACKENDS {
        let trio = whole("qwen2");
        let free = ids(&trio, backend, vec![request(1, 1.0)]).remove(0);
        let with = |change: &dyn Fn(&mut Draft)| {
            let mut request = request(1, 1.0);
            change(&mut request);
            let options = options(backend, std::slice::from_ref(&request));
            run(&trio, options, vec![request]).remove(0)
        };
        let length = with(&|_| ());
        assert_eq!((length.finish_reason, length.token_ids.len()), (FinishReason::Length, 20));

        let stop = free[5];
        let first = free.iter().position(|&id| id == stop).expect("it is in there");
        let stopped = with(&|r| r.sampling.stop_token_ids = vec![stop]);
        assert_eq!((stopped.finish_reason, &stopped.token_ids[..]), (FinishReason::Stop, &free[..=first]));

        let later = with(&|r| {
            r.sampling.stop_token_ids = vec![stop];
            r.sampling.min_tokens = first as u32 + 1;
        });
        assert_eq!(later.token_ids[..first], free[..first]);
        assert_ne!(later.token_ids[first], stop, "a stop id is not sampled below min_tokens");

        let text = length.text.clone();
        let middle = text.char_indices().nth(text.chars().count() / 2).expect("a text").0;
        let tail: String = text[middle..].chars().take(2).collect();
        let cut = with(&|r| r.stop = vec![tail.clone()]);
        assert_eq!(
            (cut.finish_reason, cut.text.as_str()),
            (FinishReason::Stop, &text[..text.find(&tail).expect("it")])
        );
    }
}

#[test]
fn banned_words_do_not_appear() {
    for backend in BACKENDS {
        let trio = whole("llama");
        let free = ids(&trio, backend, vec![request(2, 1.0)]).remove(0);
        let mut banned = request(2, 1.0);
        banned.bad_words = vec![vec![free[0]], vec![free[2], free[3]]];
        let ids_banned = ids(&trio, backend, vec![banned.clone()]).remove(0);
        assert!(!ids_banned.contains(&free[0]));
        assert!(!ids_banned.windows(2).any(|pair| pair == [free[2], free[3]]));

        let mut pair_only = request(2, 1.0);
        pair_only.bad_words = vec![vec![free[2], free[3]]];
        let got = ids(&trio, backend, vec![pair_only]).remove(0);
        assert_eq!(got[..3], free[..3]);
        assert_ne!(got[3], free[3], "the pair's second id is banned right after its first");

        let mut first_only = request(2, 1.0);
        first_only.bad_first_ids = vec![free[0]];
        assert_ne!(ids(&trio, backend, vec![first_only]).remove(0)[0], free[0]);
    }
}

#[test]
fn records_describe_the_draws() {
    for backend in BACKENDS {
        let mut recorded = request(3, 1.0);
        recorded.record = Some(4);
        let mut shorter = request(5, 0.5);
        shorter.record = Some(1);
        let requests = vec![request(4, 1.0), recorded, shorter];
        let options = options(backend, &requests);
        let completions = run(&whole("llama"), options, requests);
        assert!(completions[0].record.is_empty());
        assert!(completions[1].record.iter().all(|step| step.n_top == 4));
        assert!(completions[2].record.iter().all(|step| step.n_top == 1), "as many as it asked for, not its company");
        let Completion { record, token_ids, .. } = &completions[1];
        assert_eq!(record.len(), token_ids.len());
        for (position, (step, &id)) in record.iter().zip(token_ids).enumerate() {
            assert_eq!((step.position as usize, step.chosen), (position, id));
            assert_eq!((step.rank[3], step.combined_argmax), (0, id), "greedy draws the best");
            assert_eq!(step.top[0].id, id);
        }
    }
}

#[test]
fn dropping_the_stream_cancels_and_touches_nobody_else() {
    for backend in BACKENDS {
        let trio = whole("llama");
        let mut long = request(6, 1.0);
        long.sampling.max_tokens = 100;
        let other = sampled(7, 1.0);
        let alone = ids(&trio, backend, vec![other.clone()]).remove(0);
        let both = EngineOptions { n_slots: 2, ..options(backend, &[long.clone(), other.clone()]) };
        let engine = Engine::start(trio.clone(), both).expect("the engine starts");
        let submit = |draft| engine.submit(checked(&trio, vec![draft])?);
        let mut dropped = submit(long).expect("a valid request").into_iter();
        let kept = submit(other).expect("a valid request");
        dropped.next();
        drop(dropped);
        let done = kept.into_iter().filter_map(|event| match event {
            Event::Done { completion, .. } => Some(completion.token_ids),
            Event::Token { .. } => None,
        });
        assert_eq!(done.collect::<Vec<_>>(), [alone]);
    }
}

#[test]
fn an_engine_for_a_server_takes_whatever_its_models_can() {
    let trio = whole("llama");
    let options = EngineOptions { backend: BackendChoice::Cpu, max_waiting: 3, ..EngineOptions::serving(&trio) };
    let engine = Engine::start(trio.clone(), options).expect("the engine starts");
    let mut asked = request(1, 1.0);
    asked.sampling.repetition_penalty = 1.5;
    asked.record = Some(MAX_RECORD_TOP);
    asked.sampling.max_tokens = engine.limits().positions.into_iter().min().expect("three roles") as u32
        - asked.prompts.iter().map(Vec::len).max().expect("three prompts") as u32;
    assert!(Request::new(asked.clone(), engine.limits()).is_ok());
    // More samples than may wait would never come in.
    asked.n = 4;
    let refused = Request::new(asked, engine.limits()).expect_err("three may wait");
    assert!(refused.to_string().contains("4 is not in [1, 3]"), "{refused}");
}

#[test]
fn what_cannot_run_is_refused_with_numbers() {
    let trio = whole("llama");
    let fine = request(1, 1.0);
    let options = options(BackendChoice::Cpu, std::slice::from_ref(&fine));
    let engine = Engine::start(trio.clone(), options).expect("the engine starts");
    let mut long = fine.clone();
    long.sampling.max_tokens = 100;
    let submit = |draft| engine.submit(checked(&trio, vec![draft]).expect("the models have the positions"));
    let refused = submit(long).err();
    assert!(matches!(&refused, Some(Error::Argument { param, .. }) if param == "max_tokens"), "{refused:?}");
    let served = submit(fine).expect("others are served on").into_iter().count();
    assert_eq!(served, 21, "20 tokens and an end");
}
