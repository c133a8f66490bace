//! Higher priorities start first when a node boots.
//!
//! Drivers run concurrently. An instance of a lower priority does not start until every instance of a higher priority was
//! started, or has nothing to do, or waits. This applies once, to the instances that exist when the agent starts, and
//! again to those that wait for a host whose shutdown was canceled. It applies for a limited time, so that an instance
//! that cannot start does not block the others for long.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;
use waifud_kit::sync::lock;
use waifud_types::InstanceId;

/// After this time, every instance may start.
const LIMIT: Duration = Duration::from_mins(2);

/// The instances that have not had their first start after the host's boot; see the module documentation.
#[derive(Debug)]
pub(crate) struct BootOrder {
    turns: Mutex<Turns>,
}

#[derive(Debug)]
struct Turns {
    open: BTreeMap<InstanceId, i32>,
    end: Instant,
}

impl BootOrder {
    /// The instances and their priorities.
    pub fn new(instances: impl IntoIterator<Item = (InstanceId, i32)>) -> Self {
        Self {
            turns: Mutex::new(Turns {
                open: instances.into_iter().collect(),
                end: Instant::now() + LIMIT,
            }),
        }
    }

    /// Whether no instance of a higher priority has an open turn.
    pub fn may_start(&self, priority: i32) -> bool {
        let turns = self.turns();
        turns.open.values().all(|other| *other <= priority) || Instant::now() >= turns.end
    }

    /// The host is shutting down. If it stays up after all, the instance takes another turn.
    pub fn wait_for_host(&self, id: InstanceId, priority: i32) {
        let mut turns = self.turns();
        turns.open.insert(id, priority);
        turns.end = Instant::now() + LIMIT;
    }

    /// Ends the instance's turn. Returns whether it was open, so that others may start now.
    pub fn finish_turn(&self, id: InstanceId) -> bool {
        self.turns().open.remove(&id).is_some()
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        lock(&self.turns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_priorities_wait_for_higher_ones_and_equal_ones_start_together() {
        let [db, web, other] = [(); 3].map(|()| InstanceId::generate());
        let order = BootOrder::new([(db, 10), (web, 0), (other, 0)]);
        assert!(order.may_start(10) && !order.may_start(0));
        assert!(order.finish_turn(db));
        assert!(order.may_start(0), "equals start together");
        assert!(!order.finish_turn(db), "only the first turn counts");
        order.wait_for_host(db, 10);
        assert!(!order.may_start(0), "after the host stayed up");
    }
}
