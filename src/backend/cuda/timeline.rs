//! The time of each kernel, for `bench --timeline`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What kernels took since it was last taken, shared by who runs them and who asks. While one is kept, launches run one
/// after the other, none beside another, and each step is waited for.
#[derive(Clone, Debug, Default)]
pub struct Timeline(Arc<Mutex<Times>>);

/// The times of some steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// Steps.
    pub steps: u64,
    /// By the name of the kernel, and its blocks: the same kernel stands for several matrices.
    pub kernels: BTreeMap<(&'static str, [u32; 3]), Time>,
}

/// The time of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Time {
    /// Its launches.
    pub launches: u64,
    /// All of them together.
    pub ms: f64,
}

impl Timeline {
    fn times(&self) -> MutexGuard<'_, Times> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a step: its launches by kernel, and their milliseconds.
    pub(super) fn add(&self, launches: impl Iterator<Item = ((&'static str, [u32; 3]), f32)>) {
        let mut times = self.times();
        times.steps += 1;
        for (kernel, ms) in launches {
            let time = times.kernels.entry(kernel).or_default();
            time.launches += 1;
            time.ms += f64::from(ms);
        }
    }

    /// What was added, which is then forgotten.
    pub fn take(&self) -> Times {
        std::mem::take(&mut self.times())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_added_until_they_are_taken() {
        let timeline = Timeline::default();
        let [embed, wide, record] = [("embed", [1; 3]), ("embed", [2, 1, 1]), ("record", [1; 3])];
        timeline.clone().add([(embed, 1.0), (record, 0.5), (embed, 2.0), (wide, 8.0)].into_iter());
        timeline.add([(embed, 4.0)].into_iter());
        let Times { steps, kernels } = timeline.take();
        let time = |launches, ms| Time { launches, ms };
        let expected = [(embed, time(3, 7.0)), (wide, time(1, 8.0)), (record, time(1, 0.5))];
        assert_eq!((steps, kernels), (2, expected.into()));
        assert_eq!(timeline.take(), Times::default());
    }
}
