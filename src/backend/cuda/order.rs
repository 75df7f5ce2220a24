//! In which order the launches of a step go to the streams of a card, and which of them wait for others.

use super::device::{Branch, Launch, N_BRANCHES};

/// What is done, one after the other. Stream 0 is the main one: that of the first stack, of launches that wait for all, and
/// of everything outside of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Launch number `index` of the step goes to a stream. `overlaps`: right behind another of this step, so it may start
    /// while that one ends.
    Launch { index: usize, stream: usize, overlaps: bool },
    /// Notes how far the main stream has come.
    Fork,
    /// The stream waits for what was noted.
    Follow(usize),
    /// The main stream waits for this one.
    Join(usize),
}

/// The actions of a step. At its end the main stream has waited for all.
pub(super) fn actions(launches: &[Launch]) -> Vec<Action> {
    let mut actions = Vec::new();
    // Whether the last thing on each stream is a launch of this step.
    let mut warm = [false; N_BRANCHES];
    let mut index = 0;
    for run in launches.chunk_by(|a, b| (a.branch == Branch::All) == (b.branch == Branch::All)) {
        let has_sides = run.iter().any(|launch| stream_of(launch) > 0);
        if has_sides {
            actions.push(Action::Fork);
            warm[0] = false;
        }
        let mut follows = [false; N_BRANCHES];
        for launch in run {
            let stream = stream_of(launch);
            if stream > 0 && !follows[stream] {
                actions.push(Action::Follow(stream));
                (follows[stream], warm[stream]) = (true, false);
            }
            actions.push(Action::Launch { index, stream, overlaps: warm[stream] });
            warm[stream] = true;
            index += 1;
        }
        for stream in (0..N_BRANCHES).filter(|&stream| follows[stream]) {
            actions.push(Action::Join(stream));
            warm[0] = false;
        }
    }
    actions
}

fn stream_of(launch: &Launch) -> usize {
    match launch.branch {
        Branch::Stack(stack) => stack,
        Branch::All => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernels::MODULES;
    use super::*;

    fn launches(branches: &[Branch]) -> Vec<Launch> {
        let kernel = MODULES.iter().flat_map(|module| module.kernels).next().expect("a kernel");
        let launch = |&branch| Launch { kernel, grid: [1; 3], args: [].into(), branch };
        branches.iter().map(launch).collect()
    }

    /// What each launch has waited for when it runs, itself included; and what the main stream has at the end.
    fn waited(actions: &[Action], n_launches: usize) -> (Vec<u64>, u64) {
        let (mut streams, mut forked, mut waited) = ([0u64; N_BRANCHES], 0, vec![0; n_launches]);
        for action in actions {
            match *action {
                Action::Launch { index, stream, .. } => {
                    streams[stream] |= 1 << index;
                    waited[index] = streams[stream];
                }
                Action::Fork => forked = streams[0],
                Action::Follow(stream) => streams[stream] |= forked,
                Action::Join(stream) => streams[0] |= streams[stream],
            }
        }
        (waited, streams[0])
    }

    #[test]
    fn a_step_forks_for_its_second_stack_and_joins_before_the_draw() {
        use Action::*;
        let (base, pair, all) = (Branch::Stack(0), Branch::Stack(1), Branch::All);
        let launch = |index, stream, overlaps| Launch { index, stream, overlaps };
        let order = actions(&launches(&[base, base, pair, pair, all, all]));
        let stacks =
            [Fork, launch(0, 0, false), launch(1, 0, true), Follow(1), launch(2, 1, false), launch(3, 1, true)];
        let draw = [Join(1), launch(4, 0, false), launch(5, 0, true)];
        assert_eq!(order, [&stacks[..], &draw[..]].concat());
        // Nothing to wait for where there is one stack.
        let order = actions(&launches(&[all, base, base, all]));
        assert_eq!(order, [launch(0, 0, false), launch(1, 0, true), launch(2, 0, true), launch(3, 0, true)]);
        assert_eq!(actions(&[]), []);
    }

    /// Every mixture of five launches: each waits for what its branch says, two stacks never for each other, and the main
    /// stream in the end for all.
    #[test]
    fn launches_wait_for_what_their_branch_says_and_for_nothing_else() {
        let kinds = [Branch::Stack(0), Branch::Stack(1), Branch::Stack(2), Branch::All];
        for mixture in 0..4usize.pow(5) {
            let branches: Vec<Branch> = (0..5).map(|place| kinds[mixture / 4usize.pow(place) % 4]).collect();
            let launches = launches(&branches);
            let order = actions(&launches);
            let (waited, main) = waited(&order, 5);
            let due = |index: usize| {
                let waits_for = |&before: &usize| {
                    let (a, b) = (branches[before], branches[index]);
                    a == b || a == Branch::All || b == Branch::All
                };
                let direct = (0..index).filter(waits_for).fold(1u64 << index, |all, before| all | 1 << before);
                // What those before have waited for has ended too.
                (0..index).filter(|before| direct >> before & 1 == 1).fold(direct, |all, before| all | waited[before])
            };
            let due: Vec<u64> = (0..5).map(due).collect();
            assert_eq!(waited, due, "{branches:?}: {order:?}");
            assert_eq!(main, 0b11111, "{branches:?}: {order:?}");
            let overlapping = order.windows(2).filter(|pair| matches!(pair[1], Action::Launch { overlaps: true, .. }));
            for pair in overlapping {
                // Something else on another stream may stand between; on its own nothing does.
                assert!(!matches!(pair[0], Action::Fork), "{order:?}");
            }
        }
    }
}
