//! `/record`: how each token of a reply came about, as a table.

use crate::backend::params::StepRecord;
use crate::cli::output::table;
use crate::cli::result::{has_pair, token_text};
use crate::engine::trio::Trio;

/// One line per token: its probability under each model that was run and combined, and what the base would have said in
/// its place.
pub(super) fn of_reply(record: &[StepRecord], trio: &Trio) -> String {
    let heading = ["token", "combined", "base", "expert", "anti-expert", "the base alone"];
    let quoted = |id| format!("{:?}", token_text(trio, id));
    let row = |step: &StepRecord| {
        let percent = |logprob: f32| format!("{:.1} %", 100.0 * logprob.exp());
        let [base, expert, anti, combined] = step.logprob.map(percent);
        let of_pair = |percent| if has_pair(step) { percent } else { "-".into() };
        let instead = if step.base_argmax == step.chosen { String::new() } else { quoted(step.base_argmax) };
        vec![quoted(step.chosen), combined, base, of_pair(expert), of_pair(anti), instead]
    };
    let rows: Vec<Vec<String>> =
        std::iter::once(heading.map(String::from).to_vec()).chain(record.iter().map(row)).collect();
    table(&rows)
}
