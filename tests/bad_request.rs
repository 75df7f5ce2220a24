//! Requests and engine options out of range, and logits that cannot be combined: each ends with a typed error that names
//! the field, before any device work, or ends alone and leaves the others as they were.

#[path = "common/model.rs"]
mod model;

use model::{END, ModelDir, N_IDS, N_VOCAB, tensors};
use proxytune::backend::params::{MAX_BIASES, MAX_RECORD_TOP, MAX_SLOTS, MAX_STOP_IDS};
use proxytune::checkpoint::Source;
use proxytune::engine::event::{Completion, Event, FinishReason};
use proxytune::engine::limits::Limits;
use proxytune::engine::request::{Draft, Mode, Request, Sampling};
use proxytune::engine::trio::{Models, Trio, TrioSources};
use proxytune::engine::{BackendChoice, Engine, EngineOptions, EventStream};
use proxytune::{Error, Result};
use std::sync::Arc;
use std::time::Duration;

/// Sets one field of a request's sampling.
type Set = fn(&mut Sampling, f32);

/// Just inside and just outside every range; NaN and infinities are outside all of them.
#[test]
fn ranges_of_numbers() {
    let below = |x: f32| f32::from_bits(x.to_bits() - 1);
    let above = |x: f32| f32::from_bits(x.to_bits() + 1);
    let tiny = f32::from_bits(1);
    let limits = trio_of_one().limits();
    let table: [(&str, Set, Vec<f32>, Vec<f32>); 10] = [
        (
            "alpha",
            |s, x| s.alpha = x,
            vec![-1000.0, -0.0, 0.0, tiny, 1e-45, 1000.0],
            vec![above(1000.0), -above(1000.0), 1e30, -1e30],
        ),
        ("temperature", |s, x| s.temperature = x, vec![0.0, -0.0, tiny, 1e-9, 1e9, f32::MAX], vec![-tiny, -1.0]),
        ("top_p", |s, x| s.top_p = x, vec![tiny, 1e-30, below(1.0), 1.0], vec![0.0, -0.0, -0.1, above(1.0)]),
        ("base_top_p", |s, x| s.base_top_p = x, vec![tiny, 1.0], vec![0.0, above(1.0)]),
        ("min_p", |s, x| s.min_p = x, vec![0.0, -0.0, tiny, 1.0], vec![-tiny, above(1.0)]),
        ("base_min_p", |s, x| s.base_min_p = x, vec![0.0, 1.0], vec![-tiny, above(1.0)]),
        ("repetition_penalty", |s, x| s.repetition_penalty = x, vec![tiny, 1.0, f32::MAX], vec![0.0, -0.0, -1.0]),
        ("presence_penalty", |s, x| s.presence_penalty = x, vec![-2.0, 0.0, 2.0], vec![above(2.0), -above(2.0)]),
        ("frequency_penalty", |s, x| s.frequency_penalty = x, vec![-2.0, 0.0, 2.0], vec![above(2.0), -above(2.0)]),
        ("logit_bias", |s, x| s.logit_bias = vec![(3, x)], vec![-100.0, 0.0, 100.0], vec![above(100.0), -above(100.0)]),
    ];
    for (field, set, inside, mut outside) in table {
        let validate = |x: f32| {
            let mut draft = good();
            set(&mut draft.sampling, x);
            Request::new(draft, &limits)
        };
        for x in inside {
            validate(x).unwrap_or_else(|error| panic!("{field} = {x:e}: {error}"));
        }
        outside.extend([f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        for x in outside {
            let error = validate(x).expect_err(field);
            is_argument(&error, field, &x.to_string());
        }
    }
}

/// The error is about `field` of the request and says `part`.
fn is_argument(error: &Error, field: &str, part: &str) {
    assert_eq!(
        (error.param(), error.exit_code(), error.kind()),
        (Some(field), 2, "invalid_request_error"),
        "{error:?}"
    );
    assert!(error.to_string().contains(part), "{error} does not say {part:?}");
}

fn good() -> Draft {
    let sampling = Sampling { max_tokens: 8, ignore_eos: true, seed: Some(1), ..Sampling::default() };
    Draft { prompts: [vec![104, 105], vec![106], vec![107, 108, 109]], sampling, ..Draft::default() }
}

/// A trio whose three roles are one model.
fn trio_of_one() -> Arc<Trio> {
    let model = ModelDir::llama();
    open([&model, &model, &model])
}

fn checked(limits: &Limits, drafts: Vec<Draft>) -> Vec<Request> {
    let checked = drafts.into_iter().map(|draft| Request::new(draft, limits));
    checked.collect::<Result<_>>().expect("within the limits")
}

#[test]
fn ranges_of_counts_lists_and_texts() {
    type Change = fn(&mut Draft);
    let limits = trio_of_one().limits();
    let inside: [(&str, Change); 20] = [
        ("top_k off", |d| d.sampling.top_k = -1),
        ("top_k 1", |d| d.sampling.top_k = 1),
        ("top_k past the vocabulary", |d| d.sampling.top_k = i64::MAX),
        ("one token", |d| d.sampling.max_tokens = 1),
        ("all positions of the longest prompt's role", |d| d.sampling.max_tokens = 125),
        ("min = max", |d| d.sampling.min_tokens = 8),
        ("the last id", |d| d.sampling.stop_token_ids = vec![N_IDS as u32 - 1]),
        ("as many stop ids as fit", |d| d.sampling.stop_token_ids = (0..MAX_STOP_IDS as u32).collect()),
        ("one stop id, often", |d| d.sampling.stop_token_ids = vec![5; 1_000]),
        ("16 stop strings", |d| d.stop = vec!["x".repeat(1_024); 16]),
        ("as many biases as there are ids", |d| {
            d.sampling.logit_bias = (0..N_IDS as u32).map(|id| (id, 1.0)).collect()
        }),
        ("all the seeds", |d| d.sampling.seed = Some(u64::MAX)),
        ("the longest record", |d| d.record = Some(MAX_RECORD_TOP)),
        ("a record of no entries", |d| d.record = Some(0)),
        ("the last sample", |d| d.n = 128),
        ("the last row of the model", |d| d.prompts[1] = vec![N_VOCAB as u32 - 1]),
        ("the last ids banned", |d| {
            (d.bad_words, d.bad_first_ids) = (vec![vec![N_IDS as u32 - 1, 0]], vec![N_IDS as u32 - 1])
        }),
        ("no prompts where no model reads them", |d| (d.mode, d.prompts) = (Mode::BaseOnly, [vec![1], vec![], vec![]])),
        ("the expert's prompt alone", |d| (d.mode, d.prompts) = (Mode::ExpertOnly, [vec![], vec![1], vec![]])),
        ("the shortest time", |d| d.timeout = Some(Duration::from_nanos(1))),
    ];
    for (label, change) in inside {
        let mut draft = good();
        change(&mut draft);
        Request::new(draft, &limits).unwrap_or_else(|error| panic!("{label}: {error}"));
    }
    let outside: [(&str, &str, Change); 39] = [
        ("top_k", "-2 is not -1, 0 (both off) or positive", |d| d.sampling.top_k = -2),
        ("top_k", "-9223372036854775808 is not", |d| d.sampling.top_k = i64::MIN),
        ("max_tokens", "0 is not at least 1", |d| d.sampling.max_tokens = 0),
        ("max_tokens", "anti_expert_prompt and max_tokens make 129 tokens, the limit is 128", |d| {
            d.sampling.max_tokens = 126
        }),
        ("max_tokens", "prompt and max_tokens make 4294967297 tokens", |d| d.sampling.max_tokens = u32::MAX),
        ("min_tokens", "9 is above max_tokens = 8", |d| d.sampling.min_tokens = 9),
        ("stop_token_ids", "id 263 is outside the vocabulary of 263 ids", |d| d.sampling.stop_token_ids = vec![1, 263]),
        ("stop_token_ids", "id 4294967295 is outside", |d| d.sampling.stop_token_ids = vec![u32::MAX]),
        ("stop_token_ids", "33 ids, EOS ids included; at most 32", |d| d.sampling.stop_token_ids = (0..33).collect()),
        ("logit_bias", "id 263 is outside the vocabulary", |d| d.sampling.logit_bias = vec![(263, 0.0)]),
        ("logit_bias", "id 5 is named twice", |d| d.sampling.logit_bias = vec![(5, 1.0), (6, 1.0), (5, 2.0)]),
        ("logit_bias", "1025 entries; at most 1024", |d| d.sampling.logit_bias = vec![(0, 0.0); MAX_BIASES + 1]),
        ("stop", "17 strings; at most 16", |d| d.stop = vec!["x".into(); 17]),
        ("stop", "1025 bytes; at most 1024", |d| d.stop = vec!["x".repeat(1_025)]),
        ("stop", "an empty string would stop at once", |d| d.stop = vec!["x".into(), String::new()]),
        ("bad_words", "a word of no token", |d| d.bad_words = vec![vec![1], vec![]]),
        ("bad_words", "1025 words; at most 1024", |d| d.bad_words = vec![vec![1]; 1025]),
        ("bad_words", "65 tokens in a word; at most 64", |d| d.bad_words = vec![vec![1; 65]]),
        ("bad_words_first", "1025 words; at most 1024", |d| d.bad_first_ids = vec![1; 1025]),
        ("bad_words", "id 263 is outside", |d| d.bad_words = vec![vec![1], vec![2, 263]]),
        ("bad_words_first", "id 263 is outside", |d| d.bad_first_ids = vec![263]),
        ("record", "21 top entries; at most 20", |d| d.record = Some(MAX_RECORD_TOP + 1)),
        ("prompt", "holds no token", |d| d.prompts[0].clear()),
        ("expert_prompt", "holds no token", |d| d.prompts[1].clear()),
        ("anti_expert_prompt", "holds no token", |d| d.prompts[2].clear()),
        ("expert_prompt", "holds no token", |d| (d.sampling.alpha, d.prompts[1]) = (0.0, vec![])),
        ("prompt", "holds no token", |d| (d.mode, d.prompts[0]) = (Mode::BaseOnly, vec![])),
        ("expert_prompt", "holds no token", |d| (d.mode, d.prompts[1]) = (Mode::ExpertOnly, vec![])),
        // row 43
        ("prompt", "id 272 at 1 is past the model's 272 rows", |d| d.prompts[0][1] = N_VOCAB as u32),
        ("expert_prompt", "id 300 at 0 is past", |d| (d.mode, d.prompts[1]) = (Mode::ExpertOnly, vec![300])),
        ("anti_expert_prompt", "id 4294967295 at 2 is past", |d| d.prompts[2][2] = u32::MAX),
        // row 93
        ("alpha", "NaN is not in [-1000, 1000]", |d| d.sampling.alpha = f32::NAN),
        ("n", "0 is not in [1, 128]", |d| d.n = 0),
        ("n", "129 is not in [1, 128]", |d| d.n = 129),
        ("queue_timeout", "0 would end the request", |d| d.queue_timeout = Some(Duration::ZERO)),
        ("timeout", "0 would end the request", |d| d.timeout = Some(Duration::ZERO)),
        ("base_top_p", "the base, which is not run", |d| (d.mode, d.sampling.base_top_p) = (Mode::ExpertOnly, 0.5)),
        ("base_min_p", "the base, which is not run", |d| (d.mode, d.sampling.base_min_p) = (Mode::ExpertOnly, 0.5)),
        ("record", "the base, which is not run", |d| (d.mode, d.record) = (Mode::ExpertOnly, Some(1))),
    ];
    for (field, part, change) in outside {
        let mut draft = good();
        change(&mut draft);
        is_argument(&Request::new(draft, &limits).expect_err(part), field, part);
    }
    // The models' own stop ids count towards the limit, unless they are ignored.
    assert_eq!(limits.stop_ids, [END]);
    let mut draft = good();
    draft.sampling.stop_token_ids = (0..MAX_STOP_IDS as u32).collect();
    draft.sampling.ignore_eos = false;
    is_argument(&Request::new(draft, &limits).expect_err("one too many"), "stop_token_ids", "33 ids");
}

fn open(models: [&ModelDir; 3]) -> Arc<Trio> {
    Arc::new(Trio::combine(open_models(models), &[]).expect("three that fit together"))
}

/// A trio whose weights may be NaN: what its logits do is what is asked.
fn open_non_finite(models: [&ModelDir; 3]) -> Arc<Trio> {
    let mut models = open_models(models);
    models.allow_non_finite_weights();
    Arc::new(Trio::combine(models, &[]).expect("three that fit together"))
}

fn open_models(models: [&ModelDir; 3]) -> Models {
    let [base, expert, anti] = models.map(|model| Source::directory(model.path()));
    let sources = TrioSources { base, expert: Some(expert), anti_expert: Some(anti) };
    Models::open(&sources).expect("three right models")
}

fn options(drafts: &[Draft]) -> EngineOptions {
    EngineOptions { backend: BackendChoice::Cpu, threads: Some(1), ..EngineOptions::sized_for(drafts) }
}

fn run(trio: &Arc<Trio>, options: EngineOptions, drafts: Vec<Draft>) -> Result<Vec<Completion>> {
    let mut done = vec![None; drafts.len()];
    for event in Engine::start(trio.clone(), options)?.submit(checked(&trio.limits(), drafts))? {
        if let Event::Done { sample, completion } = event {
            done[sample] = Some(*completion);
        }
    }
    Ok(done.into_iter().map(|completion| completion.expect("every request ends")).collect())
}

/// What an engine of this size says of one request, beside a good one that must be served as if alone.
fn refused_by_engine(options: EngineOptions, draft: Draft) -> Error {
    let trio = trio_of_one();
    let engine = Engine::start(trio.clone(), options).expect("the engine starts");
    let submit = |draft| engine.submit(checked(&trio.limits(), vec![draft]));
    let ids = |events: EventStream| {
        events
            .into_iter()
            .filter_map(|event| match event {
                Event::Done { completion, .. } => Some(completion.token_ids),
                Event::Token { .. } => None,
            })
            .collect::<Vec<_>>()
    };
    let alone = ids(submit(good()).expect("it runs"));
    let running = submit(good()).expect("it runs");
    let refused = submit(draft).expect_err("it is refused at once");
    assert_eq!(ids(running), alone, "the other request is served as if alone");
    refused
}

// rows 43, 55
#[test]
fn requests_that_the_engine_has_no_room_for() {
    let room = || options(&[good()]);
    let with = |change: fn(&mut Draft)| {
        let mut draft = good();
        change(&mut draft);
        draft
    };
    let long = refused_by_engine(room(), with(|d| d.sampling.max_tokens = 10));
    is_argument(&long, "max_tokens", "prompt and max_tokens make 12 tokens, the limit is 11");
    let long = refused_by_engine(room(), with(|d| d.prompts[1] = vec![1; 4]));
    is_argument(&long, "max_tokens", "expert_prompt and max_tokens make 12 tokens, the limit is 11");
    is_argument(&refused_by_engine(room(), with(|d| d.record = Some(1))), "record", "without room for records");
    let penalised = refused_by_engine(room(), with(|d| d.sampling.presence_penalty = 1.0));
    is_argument(&penalised, "repetition_penalty", "without room for penalties");
}

/// What one trio takes may be more than another has: the engine looks again.
#[test]
fn requests_that_were_checked_against_another_trio() {
    let (long, short) = (ModelDir::llama(), ModelDir::llama());
    short.set("config.json", "/max_position_embeddings", 16.into());
    let short = open([&short, &short, &short]);
    let mut draft = good();
    draft.sampling.max_tokens = 100;
    let options = EngineOptions { max_model_len: 16, ..options(&[good()]) };
    let engine = Engine::start(short.clone(), options).expect("the engine starts");
    let foreign = checked(&open([&long, &long, &long]).limits(), vec![draft.clone()]);
    let error = engine.submit(foreign).expect_err("refused at once");
    is_argument(&error, "max_tokens", "make 102 tokens, the limit is 16");
    is_argument(&Request::new(draft, &short.limits()).expect_err("too long"), "max_tokens", "the limit is 16");
}

// row 55
#[test]
fn a_role_s_own_limit_counts() {
    let (long, short) = (ModelDir::llama(), ModelDir::llama());
    short.set("config.json", "/max_position_embeddings", 16.into());
    let trio = open([&long, &short, &long]);
    let draft = |max_tokens| {
        let mut draft = good();
        draft.sampling.max_tokens = max_tokens;
        draft
    };
    let fits = run(&trio, options(&[draft(15)]), vec![draft(15)]).expect("it runs").remove(0);
    assert_eq!((fits.error, fits.token_ids.len()), (None, 15));
    let over = Request::new(draft(16), &trio.limits()).expect_err("one too many");
    is_argument(&over, "max_tokens", "expert_prompt and max_tokens make 17 tokens, the limit is 16");
}

#[test]
fn options_out_of_range() {
    let trio = trio_of_one();
    type Change = fn(&mut EngineOptions);
    let table: [(&str, &str, Change); 11] = [
        ("max_waiting", "0 is not in", |o| o.max_waiting = 0),
        ("n_slots", "0 is not in [1, 64]", |o| o.n_slots = 0),
        ("n_slots", "65 is not in [1, 64]", |o| o.n_slots = MAX_SLOTS + 1),
        ("max_model_len", "0 is not in [1, 128]", |o| o.max_model_len = 0),
        ("max_model_len", "129 is not in [1, 128]", |o| o.max_model_len = 129),
        // The table of rotary positions alone would take all memory.
        ("max_model_len", "18446744073709551615 is not in", |o| o.max_model_len = usize::MAX),
        ("record", "21 top entries; at most 20", |o| o.record_top = Some(MAX_RECORD_TOP + 1)),
        ("record", "18446744073709551615 top entries", |o| o.record_top = Some(usize::MAX)),
        ("gpu_memory_utilization", "0 is not in (0, 1]", |o| o.memory_utilization = 0.0),
        ("gpu_memory_utilization", "1.5 is not in (0, 1]", |o| o.memory_utilization = 1.5),
        ("gpu_memory_utilization", "NaN is not in (0, 1]", |o| o.memory_utilization = f32::NAN),
    ];
    for (field, part, change) in table {
        let mut options = options(&[good()]);
        change(&mut options);
        is_argument(&Engine::start(trio.clone(), options).expect_err(part), field, part);
    }
    // A cache that the longest text does not fit into, and one that no machine has the memory for.
    for kv_cache_bytes in [0, 1_000, u64::MAX / 4] {
        let options = EngineOptions { kv_cache_bytes: Some(kv_cache_bytes), ..options(&[good()]) };
        let error = Engine::start(trio.clone(), options).expect_err("it does not fit");
        assert!(error.exit_code() == 5 && error.to_string().contains("kv_cache_memory_bytes"), "{error}");
    }
    // No prompt rows asked for: one at a time all the same.
    let crawling = EngineOptions { prefill_rows: 0, ..options(&[good()]) };
    assert_eq!(run(&trio, crawling, vec![good()]).expect("it runs")[0].token_ids.len(), 8);
}

#[test]
fn devices_that_are_not_there() {
    let trio = trio_of_one();
    let start = |backend, device| {
        let options = EngineOptions { backend, device, ..options(&[good()]) };
        let error = Engine::start(trio.clone(), options).expect_err("no such device");
        assert_eq!((error.exit_code(), error.kind()), (5, "device_error"), "{error:?}");
        error.to_string()
    };
    assert!(start(BackendChoice::Cuda, Some(1_000)).starts_with("cuda: "));
    assert!(start(BackendChoice::Cpu, Some(1)).contains("there is one device, number 0; 1 was asked for"));
    assert!(start(BackendChoice::Wgpu, Some(1_000)).starts_with("wgpu: "));
}

/// A model whose head has a NaN in row `row`, so that every row of logits holds it in that column.
fn with_nan_head(row: usize, value: f32) -> ModelDir {
    let model = ModelDir::llama();
    let mut list = tensors(false);
    let head = list.iter_mut().find(|tensor| tensor.name == "lm_head.weight").expect("it is untied");
    let n_bytes = 4 * model::D_MODEL;
    head.bytes[row * n_bytes..][..n_bytes].copy_from_slice(&value.to_le_bytes().repeat(model::D_MODEL));
    model.set_tensors(&list);
    model
}

#[test]
fn logits_that_cannot_be_combined_end_their_own_sequence() {
    let (fine, broken) = (ModelDir::llama(), with_nan_head(50, f32::NAN));
    for role in 0..3 {
        let mut models = [&fine; 3];
        models[role] = &broken;
        let trio = open_non_finite(models);
        let mut requests = vec![good(), good()];
        requests[1].sampling.alpha = 0.0;
        let done = run(&trio, options(&requests), requests).expect("the engine runs");
        let error = done[0].error.as_ref().expect("a NaN in a row that is read");
        assert_eq!((error.exit_code(), error.kind(), done[0].token_ids.len()), (6, "numeric_error", 0), "role {role}");
        assert_eq!(done[0].finish_reason, FinishReason::Error);
        if role == 0 {
            assert_eq!(done[1].error.as_ref().map(Error::kind), Some("numeric_error"));
        } else {
            // With alpha 0 the pair is not read: the base, bit for bit.
            let alone =
                Arc::new(Trio::open(&TrioSources::alone(Source::directory(fine.path())), &[]).expect("a model"));
            let base = run(&alone, options(&[good()]), vec![good()]).expect("it runs").remove(0);
            assert_eq!((&done[1].error, &done[1].token_ids), (&None, &base.token_ids), "role {role}");
        }
    }
}

/// One token of the expert's embedding is NaN: who has it in the prompt fails, and nobody else notices.
#[test]
fn company_of_a_sequence_that_fails() {
    let (fine, broken) = (ModelDir::llama(), ModelDir::llama());
    let mut list = tensors(false);
    let embedding = list.iter_mut().find(|tensor| tensor.name.contains("embed_tokens")).expect("it is there");
    let row = 4 * model::D_MODEL;
    embedding.bytes[262 * row..263 * row].copy_from_slice(&f32::NAN.to_le_bytes().repeat(model::D_MODEL));
    broken.set_tensors(&list);
    let trio = open_non_finite([&fine, &broken, &fine]);
    let request = |seed: u64| {
        let mut request = good();
        request.sampling =
            Sampling { temperature: 1.0, seed: Some(seed), stop_token_ids: vec![262], ..request.sampling };
        request.sampling.logit_bias = vec![(262, -100.0)];
        request
    };
    let mates: Vec<Draft> = (0..4).map(request).collect();
    let alone = run(&trio, options(&mates), mates.clone()).expect("they run");
    assert!(alone.iter().all(|completion| completion.error.is_none()));
    let mut company = mates;
    let mut fails = request(9);
    fails.prompts[1].push(262);
    company.insert(2, fails);
    let mut together = run(&trio, options(&company), company).expect("the engine runs");
    assert_eq!(together.remove(2).error.as_ref().map(Error::kind), Some("numeric_error"));
    let ids = |list: &[Completion]| list.iter().map(|completion| completion.token_ids.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&together), ids(&alone));
}

#[test]
fn bans_that_leave_no_token() {
    let trio = trio_of_one();
    let mut request = good();
    request.bad_words = (0..N_IDS as u32).map(|id| vec![id]).collect();
    let mut one_left = request.clone();
    one_left.bad_words.retain(|word| word != &[7]);
    let done = run(&trio, options(&[request.clone()]), vec![request, one_left]).expect("the engine runs");
    let error = done[0].error.as_ref().expect("no token is left");
    assert_eq!((error.exit_code(), error.kind()), (6, "numeric_error"));
    assert!(error.to_string().contains("no token is allowed"), "{error}");
    assert_eq!((&done[1].error, &done[1].token_ids), (&None, &vec![7; 8]));
}

/// Padding rows are the most attractive of all, in each role: 5,760 draws never take one.
#[test]
fn padding_is_never_sampled() {
    let model = ModelDir::llama();
    let mut list = tensors(false);
    let head = list.iter_mut().find(|tensor| tensor.name == "lm_head.weight").expect("it is untied");
    let live = 4 * model::D_MODEL * N_IDS;
    let n_pad = (head.bytes.len() - live) / 4;
    head.bytes[live..].copy_from_slice(&1e30f32.to_le_bytes().repeat(n_pad));
    model.set_tensors(&list);
    let trio = open([&model, &model, &model]);
    let request = |seed| {
        let mut request = good();
        request.sampling = Sampling { temperature: 5.0, seed: Some(seed), max_tokens: 90, ..request.sampling };
        request
    };
    let requests: Vec<Draft> = (0..64).map(request).collect();
    for completion in run(&trio, options(&requests), requests).expect("the engine runs") {
        assert_eq!((completion.error, completion.token_ids.len()), (None, 90));
        assert!(completion.token_ids.iter().all(|&id| (id as usize) < N_IDS));
    }
}
