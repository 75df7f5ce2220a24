//! `bench --timeline`: what each kernel takes in a run of the trio.

use super::{Bench, Setting};
use crate::Result;
use crate::backend::cuda::{Time, Timeline, Times};
use crate::cli::output::{Stdout, table};

pub(super) fn run(bench: &Bench, settings: &[Setting], timeline: &Timeline, out: &mut Stdout) -> Result<()> {
    for &setting in settings {
        // What is made once.
        bench.time(Setting { output: 2, ..setting }, 1.0)?;
        timeline.take();
        bench.time(setting, 1.0)?;
        let Setting { prompt, output, batch } = setting;
        out.line(&format!("prompt {prompt}, output {output}, batch {batch}\n{}\n", text(&timeline.take())))?;
    }
    Ok(())
}

/// A line for each kernel and grid, those that take longest first; of decode steps.
fn text(Times { steps, kernels }: &Times) -> String {
    let per_step = |n: f64| n / (*steps).max(1) as f64;
    let total: f64 = kernels.values().map(|time| time.ms).sum();
    let row = |cells: [String; 6]| cells.to_vec();
    let line = |name: &str, blocks: String, time: &Time| {
        let us = 1e3 * time.ms / time.launches.max(1) as f64;
        let (launches, ms) = (per_step(time.launches as f64), per_step(time.ms));
        let share = format!("{:.1} %", 100.0 * time.ms / total.max(f64::MIN_POSITIVE));
        row([name.into(), blocks, format!("{launches:.1}"), format!("{us:.2}"), format!("{ms:.4}"), share])
    };
    let mut by_time: Vec<_> = kernels.iter().collect();
    by_time.sort_by(|(_, a), (_, b)| b.ms.total_cmp(&a.ms));
    let launches = kernels.values().map(|time| time.launches).sum();
    let mut rows = vec![row(["kernel", "blocks", "launches/step", "us/launch", "ms/step", "share"].map(String::from))];
    rows.extend(by_time.into_iter().map(|((name, [x, y, z]), time)| line(name, format!("{x} x {y} x {z}"), time)));
    rows.push(line("in all", String::new(), &Time { launches, ms: total }));
    table(&rows)
}
