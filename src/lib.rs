//! proxytune decodes a large base model M steered by a small tuned pair (M+, M-):
//!
//! ```text
//! s = base + alpha * (expert - anti)          next token ~ softmax(s / T)
//! ```
//!
//! over raw logits (proxy tuning, arXiv 2401.08565). Three models, one device, one pool of KV pages, and one fused
//! kernel at the end of every step.
//!
//! ```
//! use proxytune::engine::{Draft, Engine, EngineOptions, Event, Request, Trio};
//! use proxytune::text::{PromptRequest, Roles};
//! use std::sync::Arc;
//!
//! # let sources = proxytune::cli::demo::sources();
//! let trio = Arc::new(Trio::open(&sources, &[])?);
//! let prompt = PromptRequest { text: "Name three uses of copper.".into(), chat: Roles::EXPERT, ..Default::default() };
//! let draft = Draft { prompts: prompt.encode(&trio.models().role_texts())?.ids, ..Draft::default() };
//! # let draft = Draft { sampling: proxytune::engine::Sampling { max_tokens: 8, ..draft.sampling }, ..draft };
//! let request = Request::new(draft, &trio.limits())?; // refuses what cannot run, by the name of the field
//! let engine = Engine::start(trio, EngineOptions::sized_for(std::slice::from_ref(&request)))?;
//! for event in engine.generate(request)? {
//!     match event {
//!         Event::Token { text, .. } => print!("{text}"),
//!         Event::Done { completion, .. } => completion.error.map_or(Ok(()), Err)?,
//!     }
//! }
//! # Ok::<(), proxytune::Error>(())
//! ```
//!
//! # The walk
//! 1. [`checkpoint`]: a model directory, read and checked, becomes named tensors and a `ModelConfig`.
//! 2. [`model::weights`]: tensors are joined, stacked (expert and anti-expert in one launch) and uploaded.
//! 3. [`engine::trio`]: the three vocabularies are compared id by id.
//! 4. [`text`]: a request's text becomes three prompts (each role's own) and three token lists.
//! 5. [`engine`]: admission takes pages for all three or none; the scheduler picks rows; a batch fills device buffers.
//! 6. [`model::graph`]: `forward` for the base, and once for the pair, records the ops of [`backend`].
//! 7. `combine_sample` turns three rows of logits into one id, in the slot's cell, where the next step's embed reads it.
//! 8. The host reads ids some steps late; [`text::stream`] makes text of them; an event goes to the request's channel.
//!
//! # Invariants
//! - A row's bits never depend on its company: not on the batch, the chunking of the prompt, or the thread count.
//! - alpha = 0 is the base, bit for bit. A fault in one model fails the request; it never falls back to the base.
//! - Columns that the three tokenizers do not define alike are never sampled, whatever they hold.

pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod engine;
pub mod error;
pub mod kv;
pub mod model;
pub mod selftest;
pub mod text;

pub use error::{Error, Result};
