//! Fault injection for the fake pool: scripted failures and calls that hang until they are released.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::StorageError;
use crate::fake::Op;

/// The faults that are still to happen. Cheap to clone; clones share one script.
#[derive(Clone)]
pub(crate) struct Faults {
    errors: Arc<Mutex<BTreeMap<Op, VecDeque<StorageError>>>>,
    hanging: watch::Sender<BTreeSet<Op>>,
    calls: Arc<Mutex<BTreeMap<Op, u64>>>,
}

impl Faults {
    pub(crate) fn new() -> Self {
        Self {
            errors: Arc::default(),
            hanging: watch::Sender::new(BTreeSet::new()),
            calls: Arc::default(),
        }
    }

    pub(crate) fn fail_next(&self, op: Op, error: StorageError) {
        lock(&self.errors).entry(op).or_default().push_back(error);
    }

    pub(crate) fn hang(&self, op: Op) {
        self.hanging.send_modify(|hanging| {
            hanging.insert(op);
        });
    }

    pub(crate) fn release(&self, op: Op) {
        self.hanging.send_modify(|hanging| {
            hanging.remove(&op);
        });
    }

    pub(crate) fn calls(&self, op: Op) -> u64 {
        lock(&self.calls).get(&op).copied().unwrap_or(0)
    }

    /// What every call does first: counts itself, hangs while told to, then fails if an error is scripted.
    pub(crate) async fn pass(&self, op: Op) -> Result<(), StorageError> {
        *lock(&self.calls).entry(op).or_default() += 1;
        // The sender lives in `self`, so waiting can't end by its loss.
        let mut hanging = self.hanging.subscribe();
        drop(hanging.wait_for(|hanging| !hanging.contains(&op)).await);
        match lock(&self.errors)
            .get_mut(&op)
            .and_then(VecDeque::pop_front)
        {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// A test that panicked while it held the lock has failed already: go on with what is there.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
