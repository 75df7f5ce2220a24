//! Kept ids and probabilities equal transformers' on the rows of tests/golden/warpers.json.

use crate::cases::fixed_point;
use crate::harness::{Case, Shape, run};
use proxytune::backend::Backend;
use serde::Deserialize;

crate::on_each_backend!(kept_ids_and_probabilities_equal_those_of_transformers);

/// A row of warpers.json; an absent setting is neutral.
#[derive(Deserialize)]
struct Golden {
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    prompt: Vec<usize>,
    logits: Vec<f32>,
    kept: Vec<usize>,
    probabilities: Vec<f64>,
}

impl Golden {
    fn case(&self) -> Case {
        let n = self.logits.len();
        let mut case = Case::plain([self.logits.clone(), vec![f32::NAN; n], vec![f32::NAN; n]], n, 0.0);
        let slot = &mut case.slot;
        slot.inverse_temperature = 1.0 / self.temperature.unwrap_or(1.0);
        (slot.top_k, slot.top_p) = (self.top_k.unwrap_or(0), fixed_point(self.top_p.unwrap_or(1.0)));
        slot.min_p = self.min_p.unwrap_or(0.0);
        slot.repetition_penalty = self.repetition_penalty.unwrap_or(1.0);
        slot.penalised = self.repetition_penalty.is_some().into();
        self.prompt.iter().for_each(|&id| case.counts[id] = 1 << 31);
        case
    }
}

fn kept_ids_and_probabilities_equal_those_of_transformers<B: Backend>(backend: &B) {
    let text = include_str!("../golden/warpers.json");
    let rows: Vec<Golden> = serde_json::from_str(text).expect("the golden file");
    assert_eq!(rows.len(), 200);
    for (index, row) in rows.iter().enumerate() {
        let outcome = &run(backend, &Shape::plain(row.logits.len()), &[row.case()], 0)[0];
        let kept: Vec<usize> = (0..row.logits.len()).filter(|&id| outcome.processed[id] > f32::NEG_INFINITY).collect();
        assert_eq!(kept, row.kept, "row {index}");
        let masses: Vec<f64> = kept.iter().map(|&id| f64::from(outcome.processed[id]).exp()).collect();
        let total: f64 = masses.iter().sum();
        for (mass, expected) in masses.iter().zip(&row.probabilities) {
            // t is at most 100 with an error of four roundings, 2.4e-5; the golden file has seven digits.
            assert!((mass / total - expected).abs() <= 3e-5 * expected, "row {index}: {} {expected}", mass / total);
        }
    }
}
