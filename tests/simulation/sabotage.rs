//! Wrong steps, made of right ones between scheduler and device: each must be found.

use crate::rng::Rng;
use proxytune::backend::params::Row;
use proxytune::engine::scheduler::{Admission, Work};
use std::cell::Cell;
use std::rc::Rc;

/// One way to spoil a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A page that is shared in part is not copied.
    NoCopy,
    /// A copy comes from another page.
    WrongCopy,
    /// More is said to be computed than is.
    TooMuchCached,
    /// A new page is one that another lane holds.
    TakenPage,
    /// Pages of a lane that finds something computed change places.
    SwappedPages,
    /// A growing lane gets nothing.
    NoGrowth,
    /// A grown page is one that another lane holds.
    TakenGrowth,
    /// A slot is not vacated.
    NotVacated,
    /// A row is lost.
    LostRow,
    /// A row comes twice.
    DoubledRow,
    /// A row has another token.
    WrongToken,
    /// A row is another slot's.
    WrongSlot,
    /// A draw is lost.
    LostDraw,
    /// Two draws change places.
    SwappedDraws,
    /// A draw reads another's row.
    WrongLogits,
    /// A request that came in is said to go on elsewhere.
    WrongStart,
}

pub(crate) const FAULTS: [Fault; 16] = [
    Fault::NoCopy,
    Fault::WrongCopy,
    Fault::TooMuchCached,
    Fault::TakenPage,
    Fault::SwappedPages,
    Fault::NoGrowth,
    Fault::TakenGrowth,
    Fault::NotVacated,
    Fault::LostRow,
    Fault::DoubledRow,
    Fault::WrongToken,
    Fault::WrongSlot,
    Fault::LostDraw,
    Fault::SwappedDraws,
    Fault::WrongLogits,
    Fault::WrongStart,
];

/// Spoils the first step that a fault can be made in.
pub(crate) struct Sabotage {
    fault: Fault,
    rng: Rng,
    /// Steps that are left alone first.
    n_spared: u64,
    /// Whether a step was spoiled: told outside of the run, which may panic.
    is_done: Rc<Cell<bool>>,
}

impl Sabotage {
    pub(crate) fn new(fault: Fault, mut rng: Rng, is_done: Rc<Cell<bool>>) -> Self {
        Self { fault, n_spared: rng.below(100) as u64, rng, is_done }
    }

    /// Spoils this step, unless it has been done, or this one has nothing to spoil.
    pub(crate) fn spoil(&mut self, work: &mut Work) {
        if self.n_spared > 0 {
            self.n_spared -= 1;
        } else if !self.is_done.get() {
            let is_done = self.try_spoil(work).is_some();
            self.is_done.set(is_done);
        }
    }

    fn try_spoil(&mut self, work: &mut Work) -> Option<()> {
        let rng = &mut self.rng;
        match self.fault {
            Fault::NoCopy => drop(work.copies.pop()?),
            Fault::WrongCopy => {
                let copy = work.copies.first_mut()?;
                copy.from ^= 1;
            }
            Fault::TooMuchCached => *work.admitted.last_mut()?.n_cached.first_mut()? += 1,
            Fault::TakenPage => {
                let pages = &mut work.admitted.last_mut()?.pages;
                let [first, second, ..] = &mut pages[..] else { return None };
                *first.last_mut()? = *second.last()?;
            }
            Fault::SwappedPages => {
                let Admission { pages, n_cached, .. } = work.admitted.last_mut()?;
                let shared = pages.iter_mut().zip(n_cached).find(|(pages, n_cached)| pages.len() > 1 && **n_cached > 0);
                shared?.0.swap(0, 1);
            }
            Fault::NoGrowth => drop(work.grown.pop()?),
            Fault::TakenGrowth => {
                let [first, second, ..] = &mut work.grown[..] else { return None };
                first.pages[0] = second.pages[0];
            }
            Fault::NotVacated => drop(work.vacated.pop()?),
            Fault::LostRow => drop(some_rows(work)?.pop()?),
            Fault::DoubledRow => {
                let rows = some_rows(work)?;
                rows.push(*rows.last()?);
            }
            Fault::WrongToken => some_rows(work)?.last_mut()?.token ^= 1,
            Fault::WrongSlot => {
                let rows = some_rows(work)?;
                let other = rows.iter().map(|row| row.slot).find(|&slot| slot != rows[0].slot)?;
                rows[0].slot = other;
            }
            Fault::LostDraw => {
                let at = rng.below(work.draws.len().max(1));
                work.batch.samples.get(at)?;
                work.batch.samples.remove(at);
                work.draws.remove(at);
            }
            Fault::SwappedDraws => {
                let [first, second, ..] = &mut work.draws[..] else { return None };
                std::mem::swap(first, second);
            }
            Fault::WrongLogits => {
                let [first, second, ..] = &mut work.batch.samples[..] else { return None };
                std::mem::swap(&mut first.row_base, &mut second.row_base);
            }
            Fault::WrongStart => work.admitted.last_mut()?.n_drawn += 1,
        }
        Some(())
    }
}

fn some_rows(work: &mut Work) -> Option<&mut Vec<Row>> {
    work.batch.stacks.iter_mut().flat_map(|stack| &mut stack.rows).find(|rows| !rows.is_empty())
}
