//! Text on both ends of the walk: a prompt to three lists of ids, and ids back to text.
//!
//! [`tokenizer`] and [`template`] belong to one role; [`vocabulary`] says what the three have in common; [`prompt`] makes
//! the three lists of a request; [`stream`] turns the produced bytes into text that can be shown.

mod decoder;
mod filters;
mod guard;
mod pre_tokenizer;
pub mod prompt;
mod slices;
pub mod stream;
pub mod template;
pub mod tokenizer;
mod tokenizer_json;
pub mod vocabulary;

pub use prompt::{PromptRequest, Prompts, Roles};
pub use stream::TextStream;
pub use template::{ChatTemplate, Message};
pub use tokenizer::Tokenizer;
pub use vocabulary::{IdPolicy, Vocabulary};
