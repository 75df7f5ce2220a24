//! The slot record: what each draw leaves in it, and each way to end.

use crate::harness::{Case, Launch, Random, Shape, run};
use proxytune::backend::Backend;
use proxytune::backend::params::{Choice, Finish, RING, Slot, StepRecord};

crate::on_each_backend!(
    finished_slot_is_left_alone,
    every_end_has_its_reason,
    many_steps_fill_ring_lengths_and_counts,
    min_tokens_holds_stop_ids_back,
    first_position_has_its_own_mask,
    resumed_slot_draws_as_the_uninterrupted_one,
);

const N: usize = 100;

/// Id 9 wins, id 4 is next.
fn case() -> Case {
    let mut base = vec![0.0; N];
    (base[9], base[4]) = (5.0, 4.0);
    Case::plain([base, vec![0.0; N], vec![0.0; N]], N, 1.0)
}

fn stop_at(slot: &mut Slot, ids: &[u32]) {
    slot.n_stop_ids = ids.len() as u32;
    slot.stop_ids[..ids.len()].copy_from_slice(ids);
}

fn finished_slot_is_left_alone<B: Backend>(backend: &B) {
    for finish in [Finish::Stop, Finish::Length, Finish::Numeric, Finish::Empty, Finish::Cancelled] {
        let mut finished = case();
        (finished.slot.finish, finished.slot.drew, finished.slot.penalised) = (finish as u32, 1, 1);
        let outcomes = run(backend, &Shape::plain(N), &[case(), finished.clone()], 5);
        assert_eq!(outcomes[0].slot.last_id, 9);
        assert_eq!(outcomes[1].slot, Slot { drew: 0, ..finished.slot });
        assert!(outcomes[1].counts.iter().all(|&count| count == 0));
        assert!(outcomes[1].combined.iter().chain(&outcomes[1].processed).all(|s| s.to_bits() == 0));
        assert_eq!(outcomes[1].record, bytemuck::Zeroable::zeroed(), "{finish:?}");
    }
}

fn every_end_has_its_reason<B: Backend>(backend: &B) {
    type Change = fn(&mut Case);
    let table: [(&str, Finish, u32, Change); 8] = [
        ("nothing ends it", Finish::Running, 1, |_| ()),
        ("stop id", Finish::Stop, 1, |case| stop_at(&mut case.slot, &[3, 9])),
        ("another stop id", Finish::Running, 1, |case| stop_at(&mut case.slot, &[3, 4])),
        ("max tokens", Finish::Length, 1, |case| case.slot.max_tokens = 1),
        ("stop id at max tokens", Finish::Stop, 1, |case| {
            stop_at(&mut case.slot, &[9]);
            case.slot.max_tokens = 1;
        }),
        ("NaN", Finish::Numeric, 0, |case| case.rows[2][50] = f32::NAN),
        ("no id allowed", Finish::Empty, 0, |case| case.allowed[1].fill(false)),
        ("only a stop id allowed below min tokens", Finish::Empty, 0, |case| {
            case.allowed[1].fill(false);
            case.allowed[1][9] = true;
            stop_at(&mut case.slot, &[9]);
            case.slot.min_tokens = 1;
        }),
    ];
    for (name, finish, produced, set) in table {
        for inverse_temperature in [0.0, 20.0] {
            let mut case = case();
            case.slot.inverse_temperature = inverse_temperature;
            set(&mut case);
            let slot = run(backend, &Shape::plain(N), &[case], 0)[0].slot;
            let found = (Finish::from_word(slot.finish), slot.produced, slot.drew);
            assert_eq!(found, (Some(finish), produced, produced), "{name}");
        }
    }
}

fn many_steps_fill_ring_lengths_and_counts<B: Backend>(backend: &B) {
    let mut random = Random::new(5);
    let mut case = Case::plain(std::array::from_fn(|_| random.normals(N, 1.0)), N, 0.5);
    (case.slot.inverse_temperature, case.slot.penalised, case.slot.frequency_penalty) = (1.0, 1, 0.01);
    case.counts[3] = 1 << 31;
    let before = case.slot;
    let launch = Launch::new(backend, &Shape::plain(N), &[case.clone()]);
    let n_steps = 3 * RING + 5;
    let ids: Vec<u32> = (0..n_steps).map(|_| launch.draw()[0].last_id).collect();
    let outcome = &launch.outcomes()[0];
    assert_eq!(outcome.slot.produced as usize, n_steps);
    assert_eq!(outcome.slot.lengths, before.lengths.map(|length| length + n_steps as u32));
    for (position, &id) in ids.iter().enumerate().skip(n_steps - RING) {
        assert_eq!(outcome.slot.ring[position % RING], id);
    }
    let mut counts = case.counts;
    ids.iter().for_each(|&id| counts[id as usize] += 1);
    assert_eq!(outcome.counts[..N], counts);
    assert!(counts.iter().filter(|count| **count & 0x7fff_ffff > 0).count() > 10, "draws differ: {ids:?}");
}

fn min_tokens_holds_stop_ids_back<B: Backend>(backend: &B) {
    let mut case = case();
    stop_at(&mut case.slot, &[9]);
    case.slot.min_tokens = 3;
    let launch = Launch::new(backend, &Shape::plain(N), &[case]);
    let slots: Vec<Slot> = (0..5).map(|_| launch.draw()[0]).collect();
    assert_eq!(slots.iter().map(|slot| slot.last_id).collect::<Vec<_>>(), [4, 4, 4, 9, 9]);
    assert_eq!(slots.iter().map(|slot| slot.finish).collect::<Vec<_>>(), [0, 0, 0, 1, 1]);
    assert_eq!(slots[4].produced, 4);
}

fn first_position_has_its_own_mask<B: Backend>(backend: &B) {
    let mut case = case();
    case.allowed[1][9] = false;
    let launch = Launch::new(backend, &Shape::plain(N), &[case]);
    let ids: Vec<u32> = (0..3).map(|_| launch.draw()[0].last_id).collect();
    assert_eq!(ids, [4, 9, 9]);
}

/// A preempted request gets a slot anew, which the host fills from what it has read.
fn resumed_slot_draws_as_the_uninterrupted_one<B: Backend>(backend: &B) {
    const N_STEPS: usize = 30;
    let mut random = Random::new(11);
    let mut case = Case::plain(std::array::from_fn(|_| random.normals(N, 1.0)), N, 0.5);
    let slot = &mut case.slot;
    (slot.inverse_temperature, slot.top_k, slot.top_p) = (1.0, 60, u32::MAX / 10 * 9);
    (slot.penalised, slot.repetition_penalty) = (1, 1.2);
    (slot.presence_penalty, slot.frequency_penalty) = (0.3, 0.2);
    (0..N).step_by(3).for_each(|id| case.counts[id] = 1 << 31);
    case.allowed[1].fill(false);
    case.allowed[1][77] = true;
    // Id 9 is drawn as soon as it may be.
    case.rows[0][9] = 50.0;
    stop_at(&mut case.slot, &[9]);
    let ends = [(Finish::Stop, 28, N_STEPS as u32), (Finish::Length, N_STEPS as u32, 29)];
    for (finish, min_tokens, max_tokens) in ends {
        (case.slot.min_tokens, case.slot.max_tokens) = (min_tokens, max_tokens);
        let whole = Launch::new(backend, &Shape::plain(N), std::slice::from_ref(&case));
        let slots: Vec<Slot> = (0..N_STEPS).map(|_| whole.draw()[0]).collect();
        let ids: Vec<u32> = slots.iter().map(|slot| slot.last_id).collect();
        assert_eq!((slots[28].produced, slots[28].finish, ids[0]), (29, finish as u32, 77));
        let end = whole.outcomes().remove(0);
        for n_drawn in [1, 2, RING - 1, RING, RING + 5, 28] {
            let n = n_drawn as u32;
            let mut resumed = case.clone();
            let lengths = case.slot.lengths.map(|length| length + n);
            resumed.slot = Slot { last_id: ids[n_drawn - 1], produced: n, lengths, ..case.slot };
            for (position, &id) in ids[..n_drawn].iter().enumerate() {
                resumed.slot.ring[position % RING] = id;
                resumed.counts[id as usize] += 1;
            }
            let launch = Launch::new(backend, &Shape::plain(N), &[resumed]);
            for slot in &slots[n_drawn..] {
                assert_eq!(launch.draw()[0], *slot, "{n_drawn} drawn before");
            }
            let found = launch.outcomes().remove(0);
            let bits = |row: &[f32]| row.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
            assert_eq!((found.counts, bits(&found.processed)), (end.counts.clone(), bits(&end.processed)));
        }
    }
}

/// What settings ask for, and what sets them.
type Asked = (Choice, fn(&mut Slot));

#[test]
fn settings_ask_for_what_they_need() {
    let table: [Asked; 9] = [
        (Choice::Greedy, |_| ()),
        (Choice::Greedy, |slot| (slot.top_k, slot.top_p, slot.min_p) = (3, 1 << 31, 0.1)),
        (Choice::Drawn, |slot| slot.inverse_temperature = 0.5),
        (Choice::Filtered, |slot| (slot.inverse_temperature, slot.top_k) = (1.0, 1)),
        (Choice::Filtered, |slot| (slot.inverse_temperature, slot.top_p) = (1.0, 1)),
        (Choice::Drawn, |slot| (slot.inverse_temperature, slot.min_p) = (1.0, 1e-9)),
        (Choice::BaseMasked, |slot| slot.base_top_p = 1),
        (Choice::BaseMasked, |slot| slot.base_min_p = 1e-9),
        (Choice::BaseMasked, |slot| (slot.inverse_temperature, slot.top_k, slot.base_top_p) = (1.0, 1, 1)),
    ];
    for (choice, set) in table {
        let mut slot = case().slot;
        set(&mut slot);
        assert_eq!(slot.choice(), choice, "{slot:?}");
    }
}

#[test]
fn words_of_finish_are_its_variants() {
    for word in 0..6 {
        assert_eq!(Finish::from_word(word).map(|finish| finish as u32), Some(word));
    }
    assert_eq!([6, u32::MAX].map(Finish::from_word), [None; 2]);
}

#[test]
fn records_are_whole_words() {
    assert_eq!((size_of::<Slot>() % 16, size_of::<StepRecord>() % 16), (0, 0));
}
