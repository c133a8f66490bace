//! Retry: those that wait for a node are tried again when something that they may wait for was freed, and now and then.
//!
//! All of them are walked through, the ones that asked first coming first, in steps: a transaction each, so that nobody
//! waits long for the writer. Those that need the same of a node are one class. During a walk room only shrinks, so
//! once one of a class could not be placed the others of it are passed over: a hundred thousand that wait for the same
//! cost one look at the nodes and a walk along an index. What is freed behind a walk begins the next one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use waifud_store::{NodeCapacity, WaitingPlace, WriteTx};

use super::place::Outcome;
use crate::auth::principal::Cause;
use crate::{Control, ControlError};

/// Instances that are looked at in one transaction at most.
const STEP: usize = 100;
/// Instances that are passed over or looked at in one transaction at most.
const PAGE: u32 = 2000;
/// Instances of which one walk tells in the history that they wait for something else: a hundred thousand such events
/// would be all that is left of it.
const TOLD: usize = 100;

/// A walk over all that wait.
#[derive(Default)]
struct Walk {
    after: WaitingPlace,
    /// Classes that could not be placed. With what they wait for where that is news to others of them.
    failed: HashMap<String, Option<String>>,
    told: usize,
    /// Nobody knows what was said before: each is looked at.
    thorough: bool,
}

impl Control {
    /// Tries again to place those that wait. Called where something may have been freed. Those that one transaction does
    /// not reach follow soon.
    pub(crate) fn place_waiting(&self, tx: &mut WriteTx<'_>) -> Result<(), ControlError> {
        if !tx.is_anything_waiting()? {
            return Ok(());
        }
        let mut capacities = Arc::new(tx.node_capacities()?);
        let mut walk = Walk::default();
        if self.step(tx, &mut walk, &mut capacities)? {
            // Others of these classes have still to be told.
            if walk.failed.values().any(Option::is_some) {
                self.shared.retry_all.store(true, Ordering::Relaxed);
            }
            self.shared.retry.notify_one();
        }
        Ok(())
    }

    /// Walks through all that wait, and leaves the writer to others for as long as each step took.
    pub async fn retry_waiting(&self, thorough: bool) -> Result<(), ControlError> {
        let mut walk = Walk {
            thorough: thorough | self.shared.retry_all.swap(false, Ordering::Relaxed),
            ..Walk::default()
        };
        loop {
            let control = self.clone();
            let begun = Instant::now();
            let (more, same) = self
                .shared
                .store
                .write(move |tx| {
                    let mut capacities = tx.capacities_for_placement()?;
                    let more = control.step(tx, &mut walk, &mut capacities)?;
                    Ok::<_, ControlError>((more, walk))
                })
                .await?;
            if !more {
                return Ok(());
            }
            walk = same;
            tokio::time::sleep(begun.elapsed()).await;
        }
    }

    /// One step of a walk. Says whether there are more.
    fn step(
        &self,
        tx: &mut WriteTx<'_>,
        walk: &mut Walk,
        capacities: &mut Arc<Vec<NodeCapacity>>,
    ) -> Result<bool, ControlError> {
        let cause = Cause::system();
        let page = tx.waiting(&walk.after, PAGE)?;
        let more = u32::try_from(page.len()).unwrap_or(PAGE) == PAGE;
        let mut looked = 0;
        for waiting in page {
            let failed = walk.failed.get(&waiting.class);
            if let Some(None) = failed {
                walk.after = waiting.place;
                continue;
            }
            if looked == STEP {
                return Ok(true);
            }
            looked += 1;
            walk.after = waiting.place;
            let Some(mut row) = tx.instance(waiting.id)? else {
                continue;
            };
            let tell = walk.told < TOLD;
            if let Some(Some(reason)) = failed {
                if row.status.reason.as_ref() != Some(reason) {
                    walk.told += 1;
                    self.set_reason(tx, &mut row, Some(reason.clone()), &cause, tell)?;
                }
                continue;
            }
            match self.try_to_place(tx, row, capacities, &cause)? {
                Outcome::Placed(row) => {
                    let mut capacities = Arc::make_mut(capacities).iter_mut();
                    if let Some(capacity) =
                        capacities.find(|capacity| Some(capacity.node.id) == row.node)
                    {
                        capacity.promise(&row.spec);
                    }
                }
                Outcome::Waits(row, choice) => {
                    let news = row.status.reason != choice.reason;
                    walk.told += usize::from(news);
                    let reason = choice.reason.clone().filter(|_| news || walk.thorough);
                    walk.failed.insert(waiting.class, reason);
                    self.keep_waiting(tx, *row, choice, &cause, tell)?;
                }
            }
        }
        Ok(more)
    }
}
