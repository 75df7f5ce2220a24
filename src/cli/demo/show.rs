//! How the demo looks: 80 columns, colour on a terminal, brackets elsewhere.

use super::embedded::Question;
use super::score::{Score, has_ended};
use crate::checkpoint::Checkpoint;
use crate::cli::output::Style;
use crate::engine::event::Completion;
use crate::engine::trio::Trio;
use serde_json::{Value, json};

/// Columns of an answer beside its name and verdict.
const WIDTH: usize = 56;

/// The answers to one question.
pub(super) struct Answers {
    pub base: Completion,
    pub expert: Completion,
    pub proxy: Completion,
}

impl Answers {
    pub(super) fn to_json(&self) -> Value {
        json!({ "base": self.base.text, "expert": self.expert.text, "proxy": self.proxy.text })
    }
}

/// What stands above all.
pub(super) fn heading(alpha: f32, device: &str, trio: &Trio, style: Style) -> String {
    let [base, expert, _] = trio.models().checkpoint_of_role().map(millions);
    let marked = style.marked("marked");
    format!(
        "{}\n\n  base         {base}, read about 1,000 people, not taught to answer\n  \
         expert       {expert}, taught to answer, about 500 others\n  \
         proxy-tuned  base + {alpha} * (expert - anti-expert), {marked} where that differs\n\n",
        style.bold(&format!("Three small models of an invented world, on {device}"))
    )
}

/// A question with its three answers; without a `known` fact there is no verdict.
pub(super) fn question(text: &str, known: Option<&Question>, answers: &Answers, trio: &Trio, style: Style) -> String {
    let plain = |done: &Completion| clip(vec![(done.text.clone(), false)], known.is_some());
    let rows = [
        ("base", &answers.base, plain(&answers.base)),
        ("expert", &answers.expert, plain(&answers.expert)),
        ("proxy-tuned", &answers.proxy, clip(marked(&answers.proxy, trio), known.is_some())),
    ];
    let mut shown = format!("{}\n", style.bold(text));
    for (name, done, pieces) in rows {
        let verdict = known.map(|known| verdict(known, done, style)).unwrap_or_default();
        let text: String = pieces.iter().map(|(text, mark)| piece(text, *mark, style)).collect();
        shown.push_str(&format!("  {name:<11}  {verdict}{}\n", text.trim_start()));
    }
    shown + "\n"
}

/// The table over all questions.
pub(super) fn table(score: &Score, n_questions: usize, style: Style) -> String {
    let mut shown = format!("{}\n", style.bold(&format!("{n_questions} held-out questions    right   in form")));
    let (right, form) = (score.right, score.form);
    for (name, right, form) in [
        ("base", right.base, form.base),
        ("expert", right.expert, form.expert),
        ("proxy-tuned", right.proxy, form.proxy),
        ("base tuned directly", right.target, form.target),
    ] {
        shown.push_str(&format!("  {name:<20} {:>6.1} %  {:>6.1} %\n", 100.0 * right, 100.0 * form));
    }
    if let Some(gap) = score.gap_closed() {
        let text = format!("gap closed             {:>6.1} %", 100.0 * gap);
        shown.push_str(&format!("{}   (proxy-tuned - base) / (tuned directly - base)\n", style.bold(&text)));
    }
    shown + "\nright: the answer has the fact and ends by itself; in form: one full sentence.\n"
}

fn verdict(known: &Question, done: &Completion, style: Style) -> String {
    let fact = known.is_fact_in(&done.text);
    match (fact, has_ended(done)) {
        (true, false) => style.dim("runs on  "),
        (true, true) => style.good("right    "),
        (false, _) => style.bad("wrong    "),
    }
}

/// The text in pieces: marked where the pair changed the base's choice; a changed end shows as such.
fn marked(done: &Completion, trio: &Trio) -> Vec<(String, bool)> {
    let mut runs: Vec<(Vec<u8>, bool)> = Vec::new();
    for (&id, step) in done.token_ids.iter().zip(&done.record) {
        let mark = step.base_argmax != step.combined_argmax;
        let is_end = trio.vocabulary().stop_ids.contains(&id);
        let bytes = if is_end && mark { b" end" } else { trio.bytes_of(id) };
        match runs.last_mut() {
            Some((run, last)) if *last == mark => run.extend(bytes),
            _ => runs.push((bytes.to_vec(), mark)),
        }
    }
    runs.into_iter().map(|(bytes, mark)| (String::from_utf8_lossy(&bytes).into_owned(), mark)).collect()
}

/// A piece with its mark around the words, not around the space before them.
fn piece(text: &str, mark: bool, style: Style) -> String {
    let words = text.trim_start();
    if !mark || words.is_empty() {
        return text.to_string();
    }
    format!("{}{}", &text[..text.len() - words.len()], style.marked(words))
}

/// Pieces on one line, cut to the width where asked.
fn clip(pieces: Vec<(String, bool)>, cut: bool) -> Vec<(String, bool)> {
    let mut room = if cut { WIDTH } else { usize::MAX };
    let mut clipped = Vec::new();
    for (text, mark) in pieces {
        let line: String = text.trim_end_matches('\n').replace('\n', " / ");
        let n_chars = line.chars().count();
        if n_chars > room {
            let kept: String = line.chars().take(room.saturating_sub(3)).collect();
            clipped.push((format!("{kept}..."), mark));
            break;
        }
        room -= n_chars;
        clipped.push((line, mark));
    }
    clipped
}

fn millions(checkpoint: &Checkpoint) -> String {
    let n: usize = checkpoint.tensors().map(|(_, tensor)| tensor.shape.iter().product::<usize>()).sum();
    format!("{:.1} M parameters", n as f64 / 1e6)
}
