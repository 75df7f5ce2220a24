//! The channel between the engine and who reads a request, under random schedules of its threads: no wake-up is lost, no
//! item is lost or comes twice, and either end may go at any time. A lost wake-up is a deadlock, which shuttle reports.
//!
//! The source is the engine's own; only what it is made of is shuttle's.

mod sync {
    pub(crate) use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(crate) use std::sync::PoisonError;
}

#[path = "../src/engine/channel.rs"]
mod channel;

use channel::{Receiver, Sender, channel};
use shuttle::{check_random, future, thread};
use std::future::poll_fn;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

const SCHEDULES: usize = 10_000;
const N_ITEMS: u32 = 6;

/// Sends all items, and wakes the receiver after every `every`th and, as the engine does, after the last.
fn send_all(sender: &Sender<u32>, every: u32) {
    for item in 0..N_ITEMS {
        sender.send(item);
        if (item + 1) % every == 0 || item + 1 == N_ITEMS {
            sender.flush();
        }
    }
}

/// A way to take all items.
type Read = fn(Receiver<u32>) -> Vec<u32>;

const READS: [(&str, Read); 4] = [
    ("blocking", |mut receiver| std::iter::from_fn(|| receiver.next()).collect()),
    ("with a time limit", |mut receiver| {
        let mut items = Vec::new();
        loop {
            // Time does not pass under shuttle: the limit is never reached.
            match receiver.next_timeout(Duration::from_secs(3600)) {
                Ok(item) => items.push(item),
                Err(RecvTimeoutError::Disconnected) => return items,
                Err(RecvTimeoutError::Timeout) => panic!("an hour has passed"),
            }
        }
    }),
    ("polling", |mut receiver| {
        let mut items = Vec::new();
        while let Some(item) = future::block_on(poll_fn(|context| receiver.poll_next(context))) {
            items.push(item);
        }
        items
    }),
    ("by turns", |mut receiver| {
        let mut items = Vec::new();
        loop {
            let next = match items.len() % 3 {
                0 => receiver.next(),
                1 => future::block_on(poll_fn(|context| receiver.poll_next(context))),
                _ => receiver.next_timeout(Duration::ZERO).ok().or_else(|| receiver.next()),
            };
            match next {
                Some(item) => items.push(item),
                None => return items,
            }
        }
    }),
];

#[test]
fn every_item_comes_once_and_in_order() {
    for (name, read) in READS {
        for every in [1, 2, 4] {
            let run = move || {
                let (sender, receiver) = channel();
                let sending = thread::spawn(move || send_all(&sender, every));
                assert_eq!(read(receiver), (0..N_ITEMS).collect::<Vec<_>>(), "{name}");
                sending.join().expect("it sends");
            };
            check_random(run, SCHEDULES);
        }
    }
}

/// A wake-up, not the end of the channel, brings the last item: the sender stays until the receiver has all.
#[test]
fn a_flush_is_enough() {
    for (every, polls) in [(1, false), (1, true), (3, false), (3, true)] {
        let run = move || {
            let (sender, mut receiver) = channel();
            let reading = thread::spawn(move || {
                for expected in 0..N_ITEMS {
                    let next = if polls {
                        future::block_on(poll_fn(|context| receiver.poll_next(context)))
                    } else {
                        receiver.next()
                    };
                    assert_eq!(next, Some(expected));
                }
            });
            send_all(&sender, every);
            reading.join().expect("it reads");
        };
        check_random(run, SCHEDULES);
    }
}

#[test]
fn the_receiver_may_go_at_any_time() {
    let run = || {
        let (sender, mut receiver) = channel();
        let witness = sync::Arc::new(());
        let item = witness.clone();
        let sending = thread::spawn(move || {
            for _ in 0..N_ITEMS {
                sender.send(item.clone());
                sender.flush();
            }
            drop(item);
            sender
        });
        let _ = receiver.next();
        drop(receiver);
        let sender = sending.join().expect("it sends on");
        // Items that nobody takes are dropped, not kept until the sender goes.
        assert_eq!(sync::Arc::strong_count(&witness), 1);
        drop(sender);
    };
    check_random(run, SCHEDULES);
}

#[test]
fn a_time_limit_ends_the_wait() {
    let run = || {
        let (sender, mut receiver) = channel::<u32>();
        assert_eq!(receiver.next_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout));
        drop(sender);
        assert_eq!(receiver.next_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected));
    };
    check_random(run, 1);
}
