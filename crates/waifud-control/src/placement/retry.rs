//! Retries instances that wait for a node: when something was freed, and periodically.
//!
//! A walk covers all waiting instances, oldest first, in steps of one transaction each, so that other writers do not wait
//! long. Instances with the same requirements form a class. During a walk capacity only shrinks, so after the first
//! instance of a class that cannot be placed, the others are skipped: 100,000 instances of one class cost one evaluation
//! of the nodes and one walk along an index. Whatever is freed during a walk starts the next one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::Notify;
use waifud_store::{NodeCapacity, WaitingPlace, WriteTx};
use waifud_types::WaitReason;
use waifud_types::event::Cause;

use super::place::Outcome;
use crate::{Control, ControlError};

/// The maximum number of instances evaluated in one transaction.
const STEP: usize = 100;
/// The maximum number of instances evaluated or skipped in one transaction.
const PAGE: u32 = 2000;
/// The maximum number of events about a changed reason in one walk: 100,000 of them would displace the rest of the
/// history.
const EVENTS_MAX: usize = 100;

/// Requests to try the waiting instances again.
#[derive(Debug, Default)]
pub(crate) struct RetryQueue {
    wake: Notify,
    /// The next walk looks at each instance, since not all of a class have the current reason.
    all: AtomicBool,
}

impl RetryQueue {
    pub(crate) fn request(&self) {
        self.wake.notify_one();
    }

    pub(crate) async fn requested(&self) {
        self.wake.notified().await;
    }

    fn request_all(&self) {
        self.all.store(true, Ordering::Relaxed);
    }

    fn take_all(&self) -> bool {
        self.all.swap(false, Ordering::Relaxed)
    }
}

/// A walk over all waiting instances.
#[derive(Default)]
struct Walk {
    after: WaitingPlace,
    /// Classes that cannot be placed, with the reason if other instances of the class do not have it yet.
    failed: HashMap<String, Option<WaitReason>>,
    events: usize,
    evaluated: usize,
    seen: usize,
    /// The recorded reasons may be outdated, so each instance is evaluated.
    thorough: bool,
}

impl Control {
    /// Retries waiting instances in the current transaction, after something may have been freed. The background task
    /// continues with those that one transaction does not reach.
    pub(crate) fn place_waiting(&self, tx: &mut WriteTx<'_>) -> Result<(), ControlError> {
        if tx.is_any_draining()? {
            self.retry_queue().request();
        }
        if !tx.is_anything_waiting()? {
            return Ok(());
        }
        let mut capacities = Arc::new(tx.node_capacities()?);
        let mut walk = Walk::default();
        if self.step(tx, &mut walk, &mut capacities)? {
            // Other instances of these classes need the new reason.
            if walk.failed.values().any(Option::is_some) {
                self.retry_queue().request_all();
            }
            self.retry_queue().request();
        }
        Ok(())
    }

    /// Walks over all waiting instances. After each step it pauses for as long as the step took, so that others can write.
    pub async fn retry_waiting(&self, thorough: bool) -> Result<(), ControlError> {
        let mut walk = Walk {
            thorough: thorough | self.retry_queue().take_all(),
            ..Walk::default()
        };
        let begun = Instant::now();
        loop {
            let control = self.clone();
            let started = Instant::now();
            let (more, returned) = self
                .store()
                .write(move |tx| {
                    let mut capacities = tx.capacities_for_placement()?;
                    let more = control.step(tx, &mut walk, &mut capacities)?;
                    Ok::<_, ControlError>((more, walk))
                })
                .await?;
            walk = returned;
            if !more {
                let Walk {
                    seen, evaluated, ..
                } = walk;
                if seen > 0 {
                    tracing::debug!(seen, evaluated, took = ?begun.elapsed(), "tried waiting instances again");
                }
                return Ok(());
            }
            tokio::time::sleep(started.elapsed()).await;
        }
    }

    /// One step of a walk; returns whether there are more.
    fn step(
        &self,
        tx: &mut WriteTx<'_>,
        walk: &mut Walk,
        capacities: &mut Arc<Vec<NodeCapacity>>,
    ) -> Result<bool, ControlError> {
        let cause = Cause::system();
        let page = tx.waiting(&walk.after, PAGE)?;
        let more = u32::try_from(page.len()).unwrap_or(PAGE) == PAGE;
        let mut evaluated = 0;
        for waiting in page {
            let failed = walk.failed.get(&waiting.class);
            if let Some(None) = failed {
                walk.after = waiting.place;
                walk.seen += 1;
                continue;
            }
            if evaluated == STEP {
                return Ok(true);
            }
            evaluated += 1;
            walk.evaluated += 1;
            walk.seen += 1;
            walk.after = waiting.place;
            let Some(mut row) = tx.instance(waiting.id)? else {
                continue;
            };
            let emit = walk.events < EVENTS_MAX;
            if let Some(Some(reason)) = failed {
                if row.status.wait_reason().as_ref() != Some(reason) {
                    walk.events += 1;
                    self.set_reason(tx, &mut row, Some(reason), &cause, emit)?;
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
                    let changed = row.status.wait_reason() != choice.reason;
                    walk.events += usize::from(changed);
                    let reason = choice.reason.clone().filter(|_| changed || walk.thorough);
                    walk.failed.insert(waiting.class, reason);
                    self.keep_waiting(tx, *row, choice, &cause, emit)?;
                }
            }
        }
        Ok(more)
    }
}
