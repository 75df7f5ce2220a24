//! Requests and engine options out of range, and logits that cannot be combined: each ends with a typed error that names
//! the field, before any device work, or ends alone and leaves the others as they were.

#[path = "common/model.rs"]
mod model;

use model::{END, ModelDir, N_IDS, N_VOCAB, tensors};
use proxytune::backend::params::{MAX_BIASES, MAX_RECORD_TOP, MAX_SLOTS, MAX_STOP_IDS};
use proxytune::checkpoint::Source;
use proxytune::engine::event::{Completion, Event, FinishReason};
use proxytune::engine::request::{Request, Sampling};
use proxytune::engine::trio::{Models, Trio, TrioSources};
use proxytune::engine::worker::{BackendChoice, EngineOptions, Handle};
use proxytune::{Error, Result};
use std::sync::Arc;

/// Sets one field of a request's sampling.
type Set = fn(&mut Sampling, f32);

/// Just inside and just outside every range; NaN and infinities are outside all of them.
#[test]
fn ranges_of_numbers() {
    let below = |x: f32| f32::from_bits(x.to_bits() - 1);
    let above = |x: f32| f32::from_bits(x.to_bits() + 1);
    let tiny = f32::from_bits(1);
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
            let mut sampling = Sampling::default();
            set(&mut sampling, x);
            sampling.validate(N_IDS)
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

fn good() -> Request {
    let sampling = Sampling { max_tokens: 8, ignore_eos: true, seed: Some(1), ..Sampling::default() };
    Request { prompts: [vec![104, 105], vec![106], vec![107, 108, 109]], sampling, ..Request::default() }
}

#[test]
fn ranges_of_counts_lists_and_texts() {
    type Change = fn(&mut Request);
    let inside: [(&str, Change); 15] = [
        ("top_k off", |r| r.sampling.top_k = -1),
        ("top_k 1", |r| r.sampling.top_k = 1),
        ("top_k past the vocabulary", |r| r.sampling.top_k = i64::MAX),
        ("one token", |r| r.sampling.max_tokens = 1),
        ("2^32 - 1 tokens are the engine's concern", |r| r.sampling.max_tokens = u32::MAX),
        ("min = max", |r| r.sampling.min_tokens = 8),
        ("the last id", |r| r.sampling.stop_token_ids = vec![N_IDS as u32 - 1]),
        ("as many stop ids as fit", |r| r.sampling.stop_token_ids = (0..MAX_STOP_IDS as u32).collect()),
        ("one stop id, often", |r| r.sampling.stop_token_ids = vec![5; 1_000]),
        ("16 stop strings", |r| r.stop = vec!["x".repeat(1_024); 16]),
        ("as many biases as there are ids", |r| {
            r.sampling.logit_bias = (0..N_IDS as u32).map(|id| (id, 1.0)).collect()
        }),
        ("all the seeds", |r| r.sampling.seed = Some(u64::MAX)),
        ("the longest record", |r| r.record = Some(MAX_RECORD_TOP)),
        ("a record of no entries", |r| r.record = Some(0)),
        ("the last sample", |r| r.sample_index = u32::MAX),
    ];
    for (label, change) in inside {
        let mut request = good();
        change(&mut request);
        request.validate(N_IDS, &[]).unwrap_or_else(|error| panic!("{label}: {error}"));
    }
    let outside: [(&str, &str, Change); 18] = [
        ("top_k", "-2 is not -1, 0 (both off) or positive", |r| r.sampling.top_k = -2),
        ("top_k", "-9223372036854775808 is not", |r| r.sampling.top_k = i64::MIN),
        ("max_tokens", "0 is not at least 1", |r| r.sampling.max_tokens = 0),
        ("min_tokens", "9 is above max_tokens = 8", |r| r.sampling.min_tokens = 9),
        ("stop_token_ids", "id 263 is outside the vocabulary of 263 ids", |r| r.sampling.stop_token_ids = vec![1, 263]),
        ("stop_token_ids", "id 4294967295 is outside", |r| r.sampling.stop_token_ids = vec![u32::MAX]),
        ("stop_token_ids", "33 ids, EOS ids included; at most 32", |r| r.sampling.stop_token_ids = (0..33).collect()),
        ("logit_bias", "id 263 is outside the vocabulary", |r| r.sampling.logit_bias = vec![(263, 0.0)]),
        ("logit_bias", "id 5 is named twice", |r| r.sampling.logit_bias = vec![(5, 1.0), (6, 1.0), (5, 2.0)]),
        ("logit_bias", "1025 entries; at most 1024", |r| r.sampling.logit_bias = vec![(0, 0.0); MAX_BIASES + 1]),
        ("stop", "17 strings; at most 16", |r| r.stop = vec!["x".into(); 17]),
        ("stop", "1025 bytes; at most 1024", |r| r.stop = vec!["x".repeat(1_025)]),
        ("stop", "an empty string would stop at once", |r| r.stop = vec!["x".into(), String::new()]),
        ("record", "21 top entries; at most 20", |r| r.record = Some(MAX_RECORD_TOP + 1)),
        ("prompt", "holds no token", |r| r.prompts[0].clear()),
        ("expert_prompt", "holds no token", |r| r.prompts[1].clear()),
        ("anti_expert_prompt", "holds no token", |r| r.prompts[2].clear()),
        ("alpha", "NaN is not in [-1000, 1000]", |r| r.sampling.alpha = f32::NAN),
    ];
    for (field, part, change) in outside {
        let mut request = good();
        change(&mut request);
        is_argument(&request.validate(N_IDS, &[]).expect_err(part), field, part);
    }
    // The models' own stop ids count towards the limit, unless they are ignored.
    let mut request = good();
    request.sampling.stop_token_ids = (0..MAX_STOP_IDS as u32).collect();
    request.sampling.ignore_eos = false;
    is_argument(&request.validate(N_IDS, &[END]).expect_err("one too many"), "stop_token_ids", "33 ids");
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

fn options(requests: &[Request]) -> EngineOptions {
    EngineOptions { backend: BackendChoice::Cpu, threads: Some(1), ..EngineOptions::sized_for(requests) }
}

fn run(trio: &Arc<Trio>, options: EngineOptions, requests: Vec<Request>) -> Result<Vec<Completion>> {
    let mut done = vec![None; requests.len()];
    for event in Handle::start(trio.clone(), options)?.submit(requests)? {
        if let Event::Done { request, completion } = event {
            done[request] = Some(*completion);
        }
    }
    Ok(done.into_iter().map(|completion| completion.expect("every request ends")).collect())
}

/// What an engine of this size says of one request, beside a good one that must be served as if alone.
fn refused_by_engine(options: EngineOptions, request: Request) -> Error {
    let model = ModelDir::llama();
    let trio = open([&model, &model, &model]);
    let alone = run(&trio, options.clone(), vec![good()]).expect("it runs").remove(0);
    let mut both = run(&trio, options, vec![request, good()]).expect("the engine runs on");
    assert_eq!(both[1].token_ids, alone.token_ids, "the other request is served as if alone");
    assert_eq!((both[0].finish_reason, both[0].token_ids.len()), (FinishReason::Error, 0));
    both.remove(0).error.expect("an error is said")
}

// rows 43, 55
#[test]
fn requests_that_the_engine_has_no_room_for() {
    let room = || options(&[good()]);
    let with = |change: fn(&mut Request)| {
        let mut request = good();
        change(&mut request);
        request
    };
    let long = refused_by_engine(room(), with(|r| r.sampling.max_tokens = u32::MAX));
    is_argument(&long, "max_tokens", "prompt and max_tokens make 4294967297 tokens, the limit is 11");
    let long = refused_by_engine(room(), with(|r| r.prompts[1] = vec![1; 4]));
    is_argument(&long, "max_tokens", "expert_prompt and max_tokens make 12 tokens, the limit is 11");
    let row = refused_by_engine(room(), with(|r| r.prompts[0][1] = N_VOCAB as u32));
    is_argument(&row, "prompt", "id 272 at 1 is past the model's 272 rows");
    let row = refused_by_engine(room(), with(|r| r.prompts[2][2] = u32::MAX));
    is_argument(&row, "anti_expert_prompt", "id 4294967295 at 2 is past");
    is_argument(&refused_by_engine(room(), with(|r| r.record = Some(1))), "record", "without room for records");
    let penalised = refused_by_engine(room(), with(|r| r.sampling.presence_penalty = 1.0));
    is_argument(&penalised, "repetition_penalty", "without room for penalties");
}

// row 55
#[test]
fn a_role_s_own_limit_counts() {
    let (long, short) = (ModelDir::llama(), ModelDir::llama());
    short.set("config.json", "/max_position_embeddings", 16.into());
    let trio = open([&long, &short, &long]);
    let request = |max_tokens| {
        let mut request = good();
        request.sampling.max_tokens = max_tokens;
        request
    };
    let fits = run(&trio, options(&[request(15)]), vec![request(15)]).expect("it runs").remove(0);
    assert_eq!((fits.error, fits.token_ids.len()), (None, 15));
    let over = run(&trio, options(&[request(16)]), vec![request(16)]).expect("the engine runs").remove(0);
    is_argument(
        &over.error.expect("refused"),
        "max_tokens",
        "expert_prompt and max_tokens make 17 tokens, the limit is 16",
    );
}

#[test]
fn options_out_of_range() {
    let model = ModelDir::llama();
    let trio = open([&model, &model, &model]);
    type Change = fn(&mut EngineOptions);
    let table: [(&str, &str, Change); 7] = [
        ("n_slots", "0 is not in [1, 64]", |o| o.n_slots = 0),
        ("n_slots", "65 is not in [1, 64]", |o| o.n_slots = MAX_SLOTS + 1),
        ("max_model_len", "0 is not in [1, 128]", |o| o.max_model_len = 0),
        ("max_model_len", "129 is not in [1, 128]", |o| o.max_model_len = 129),
        // The table of rotary positions alone would take all memory.
        ("max_model_len", "18446744073709551615 is not in", |o| o.max_model_len = usize::MAX),
        ("record", "21 top entries; at most 20", |o| o.record_top = Some(MAX_RECORD_TOP + 1)),
        ("record", "18446744073709551615 top entries", |o| o.record_top = Some(usize::MAX)),
    ];
    for (field, part, change) in table {
        let mut options = options(&[good()]);
        change(&mut options);
        is_argument(&Handle::start(trio.clone(), options).err().expect(part), field, part);
    }
    // No prompt rows asked for: one at a time all the same.
    let crawling = EngineOptions { prefill_rows: 0, ..options(&[good()]) };
    assert_eq!(run(&trio, crawling, vec![good()]).expect("it runs")[0].token_ids.len(), 8);
}

#[test]
fn devices_that_are_not_there() {
    let model = ModelDir::llama();
    let trio = open([&model, &model, &model]);
    let start = |backend, device| {
        let options = EngineOptions { backend, device, ..options(&[good()]) };
        let error = Handle::start(trio.clone(), options).err().expect("no such device");
        assert_eq!((error.exit_code(), error.kind()), (5, "device_error"), "{error:?}");
        error.to_string()
    };
    assert!(start(BackendChoice::Cuda, None).starts_with("cuda: "));
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
    let mates: Vec<Request> = (0..4).map(request).collect();
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
    let model = ModelDir::llama();
    let trio = open([&model, &model, &model]);
    let mut request = good();
    request.bad_words = (0..N_IDS as u32).map(|id| vec![id]).collect();
    // Words that cannot be spelled ban nothing.
    request.bad_words.extend([vec![], vec![u32::MAX], vec![N_VOCAB as u32]]);
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
    let requests: Vec<Request> = (0..64).map(request).collect();
    for completion in run(&trio, options(&requests), requests).expect("the engine runs") {
        assert_eq!((completion.error, completion.token_ids.len()), (None, 90));
        assert!(completion.token_ids.iter().all(|&id| (id as usize) < N_IDS));
    }
}
