//! Scripted failures and hanging calls for fakes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::sync::lock;

/// A script of failures for a fake whose operations are named by `Op` and fail with `E`. Clones share one script.
pub struct Faults<Op, E> {
    errors: Arc<Mutex<BTreeMap<Op, VecDeque<E>>>>,
    hanging: watch::Sender<BTreeSet<Op>>,
    calls: Arc<Mutex<BTreeMap<Op, u64>>>,
}

impl<Op, E> Clone for Faults<Op, E> {
    fn clone(&self) -> Self {
        Self {
            errors: Arc::clone(&self.errors),
            hanging: self.hanging.clone(),
            calls: Arc::clone(&self.calls),
        }
    }
}

impl<Op: Ord, E> Default for Faults<Op, E> {
    fn default() -> Self {
        Self {
            errors: Arc::default(),
            hanging: watch::Sender::new(BTreeSet::new()),
            calls: Arc::default(),
        }
    }
}

impl<Op: Ord + Copy, E> Faults<Op, E> {
    /// Lets the next call of `op` fail. Several errors are returned one after the other.
    pub fn fail_next(&self, op: Op, error: E) {
        lock(&self.errors).entry(op).or_default().push_back(error);
    }

    /// Drops the scripted errors of `op`: its next call succeeds.
    pub fn clear(&self, op: Op) {
        lock(&self.errors).remove(&op);
    }

    /// Lets calls of `op` hang until [`release`](Self::release).
    pub fn hang(&self, op: Op) {
        self.hanging.send_modify(|hanging| {
            hanging.insert(op);
        });
    }

    /// Lets the hanging calls of `op` continue.
    pub fn release(&self, op: Op) {
        self.hanging.send_modify(|hanging| {
            hanging.remove(&op);
        });
    }

    /// How often `op` was called.
    pub fn calls(&self, op: Op) -> u64 {
        lock(&self.calls).get(&op).copied().unwrap_or(0)
    }

    /// The first step of each call: counts the call, hangs if the script says so, then returns a scripted error.
    pub async fn pass(&self, op: Op) -> Result<(), E> {
        *lock(&self.calls).entry(op).or_default() += 1;
        // `self` holds the sender, so the wait ends only by a release.
        let mut hanging = self.hanging.subscribe();
        drop(hanging.wait_for(|hanging| !hanging.contains(&op)).await);
        let scripted = lock(&self.errors)
            .get_mut(&op)
            .and_then(VecDeque::pop_front);
        scripted.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn scripted_errors_come_in_order_for_their_operation_only() {
        let faults = Faults::default();
        faults.fail_next("start", 1);
        faults.fail_next("start", 2);
        assert_eq!(faults.pass("stop").await, Ok(()));
        assert_eq!(faults.clone().pass("start").await, Err(1));
        assert_eq!(faults.pass("start").await, Err(2));
        assert_eq!(faults.pass("start").await, Ok(()));
        assert_eq!((faults.calls("start"), faults.calls("stop")), (3, 1));
    }

    #[tokio::test]
    async fn after_clear_the_operation_succeeds_and_others_still_fail() {
        let faults = Faults::default();
        for op in ["start", "start", "stop"] {
            faults.fail_next(op, op);
        }
        faults.clear("start");
        assert_eq!(faults.pass("start").await, Ok(()));
        assert_eq!(faults.pass("stop").await, Err("stop"));
    }

    #[tokio::test]
    async fn a_hanging_call_continues_when_it_is_released() {
        let faults: Faults<_, ()> = Faults::default();
        faults.hang("start");
        let call = tokio::spawn({
            let faults = faults.clone();
            async move { faults.pass("start").await }
        });
        while faults.calls("start") == 0 {
            tokio::task::yield_now().await;
        }
        let mut call = call;
        let early = tokio::time::timeout(Duration::from_millis(5), &mut call).await;
        assert!(early.is_err(), "the call did not hang");
        faults.release("start");
        assert_eq!(call.await.unwrap(), Ok(()));
    }
}
