//! Requests to tokens. A step is: plan, vacate, admit, grow, copy, submit; and collect, as late as the lag allows.
//!
//! The engine lives on a thread of its own (`worker`) and talks through channels ([`handle`]); nothing outside is generic
//! over the backend. [`scheduler`] says who runs in the next step and knows no device; [`machine`] is the device and
//! knows no requests; `core` is the loop between them. Steps are submitted up to [`Backend::LAG`] ahead of the host's
//! reading, because tokens, positions and sampling state stay on the device; a slot that needs the host for its next
//! mask makes that 0.
//!
//! [`Backend::LAG`]: crate::backend::Backend::LAG

pub mod batch;
mod channel;
mod core;
pub mod event;
pub mod handle;
pub mod limits;
pub mod machine;
pub mod options;
pub mod plan;
pub mod request;
pub mod scheduler;
pub mod sequence;
pub mod trio;
mod worker;

pub use event::{Completion, Event, FinishReason};
pub(crate) use handle::lost;
pub use handle::{Engine, EventStream, Handle, random_seed};
pub use limits::Limits;
pub use options::{BackendChoice, DEFAULT_PREFILL_ROWS, EngineOptions};
pub use request::{Draft, Mode, Request, Sampling};
pub use trio::{Trio, TrioSources};

/// What the channel is made of; a test that tries all schedules puts its own in this place.
mod sync {
    pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
}
