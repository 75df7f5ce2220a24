//! Right and in form, as `demo/evaluate.py` counts them.

use super::embedded::{Question, TargetAnswer};
use super::show::Answers;
use crate::engine::event::{Completion, FinishReason};
use serde::Serialize;

/// Shares per model, 0 to 1.
#[derive(Serialize, Clone, Copy, Default)]
pub(super) struct Shares {
    pub base: f64,
    pub expert: f64,
    pub proxy: f64,
    pub target: f64,
}

/// What the questions add up to.
pub(super) struct Score {
    /// The fact is in the answer, and the model ended it by itself.
    pub right: Shares,
    /// The answer begins with the person's name, ends with a full stop, and the model ended it by itself.
    pub form: Shares,
}

impl Score {
    pub(super) fn of(questions: &[Question], answers: &[Answers], target: &[TargetAnswer]) -> Self {
        let model = |of: fn(&Answers) -> &Completion| -> Vec<(&str, bool)> {
            answers.iter().map(of).map(|done| (done.text.as_str(), has_ended(done))).collect()
        };
        let runs = [
            model(|answers| &answers.base),
            model(|answers| &answers.expert),
            model(|answers| &answers.proxy),
            target.iter().map(|target| (target.answer.as_str(), target.ended)).collect(),
        ];
        let shares = |counts: fn(&Question, &str) -> bool| {
            let [base, expert, proxy, target] = runs.each_ref().map(|run| {
                assert_eq!(run.len(), questions.len(), "one answer per question");
                let n = questions.iter().zip(run).filter(|(q, (text, ended))| *ended && counts(q, text)).count();
                n as f64 / questions.len() as f64
            });
            Shares { base, expert, proxy, target }
        };
        Score { right: shares(Question::is_fact_in), form: shares(Question::is_in_form) }
    }

    /// How far proxy tuning comes on the way from the base to the model tuned directly; none where there is no way.
    pub(super) fn gap_closed(&self) -> Option<f64> {
        let Shares { base, proxy, target, .. } = self.right;
        (target != base).then(|| (proxy - base) / (target - base))
    }
}

impl Question {
    pub(super) fn is_fact_in(&self, text: &str) -> bool {
        text.contains(&self.fact)
    }

    fn is_in_form(&self, text: &str) -> bool {
        text.strip_prefix(' ').is_some_and(|text| text.starts_with(&self.person)) && text.ends_with('.')
    }
}

/// Whether the model ended the text by itself.
pub(super) fn has_ended(completion: &Completion) -> bool {
    completion.finish_reason == FinishReason::Stop
}
