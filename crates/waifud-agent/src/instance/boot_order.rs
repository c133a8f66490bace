//! Higher priorities start first when a node boots.
//!
//! Drivers work at the same time. What this adds: until each instance of a higher priority was started, or was found to
//! have nothing to do or to wait for, those of a lower one don't start. It counts once, for the instances that were
//! there when the agent was opened, and again for those that wait for a host which was to go down and did not. It
//! counts for a limited time: one that can't start holds nobody up for long.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use waifud_types::InstanceId;

/// After this, everybody may start.
const LIMIT: Duration = Duration::from_mins(2);

/// Who has not had its first turn yet. See the module's text.
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
    /// These instances, with their priorities, wait for their first turn.
    pub fn new(instances: impl IntoIterator<Item = (InstanceId, i32)>) -> Self {
        Self {
            turns: Mutex::new(Turns {
                open: instances.into_iter().collect(),
                end: Instant::now() + LIMIT,
            }),
        }
    }

    /// Whether nobody of a higher priority waits for its first turn.
    pub fn is_turn_of(&self, priority: i32) -> bool {
        let turns = self.turns();
        turns.open.values().all(|other| *other <= priority) || Instant::now() >= turns.end
    }

    /// Its host is going down: should it stay up, the instance waits for a turn again.
    pub fn held_by_host(&self, id: InstanceId, priority: i32) {
        let mut turns = self.turns();
        turns.open.insert(id, priority);
        turns.end = Instant::now() + LIMIT;
    }

    /// It had its first turn. Says whether others may have theirs now.
    pub fn had_its_turn(&self, id: InstanceId) -> bool {
        self.turns().open.remove(&id).is_some()
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_wait_for_the_higher_and_equals_for_nobody() {
        let [db, web, other] = [(); 3].map(|()| InstanceId::generate());
        let order = BootOrder::new([(db, 10), (web, 0), (other, 0)]);
        assert!(order.is_turn_of(10) && !order.is_turn_of(0));
        assert!(order.had_its_turn(db));
        assert!(order.is_turn_of(0), "equals start together");
        assert!(!order.had_its_turn(db), "only the first turn counts");
        order.held_by_host(db, 10);
        assert!(!order.is_turn_of(0), "after the host stayed up");
    }
}
