//! When each node was last in contact, what it reported about its load, and how much it may still write.
//!
//! In memory only: after a restart it is empty and fills with the next reports, so an idle cluster writes nothing to disk.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use jiff::SignedDuration;
use waifud_kit::sync::lock;
use waifud_types::node::{PoolFacts, Resources};
use waifud_types::{NodeId, Timestamp};

use super::write_budget::WriteBudget;

/// The last contact with a node, and the load that it reported.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct NodeLoad {
    pub(crate) last_contact: Timestamp,
    /// How far the node's clock is ahead of waifud's, in seconds; `None` before its first report with a time.
    pub(crate) clock_skew: Option<f64>,
    pub(crate) used: Option<Resources>,
    pub(crate) pools: Option<Vec<PoolFacts>>,
}

/// The time of a contact, by the monotonic clock and by the time of day.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct ContactTime {
    /// How long this process had run.
    pub(crate) running: Duration,
    /// The time of day, for texts.
    pub(crate) at: Timestamp,
}

/// Contacts with all nodes.
#[derive(Default, Debug)]
pub(crate) struct NodeContacts(Mutex<Tables>);

#[derive(Default, Debug)]
struct Tables {
    loads: HashMap<NodeId, NodeLoad>,
    /// The reachable nodes, with the last contact of each, or the start of this process.
    reachable: HashMap<NodeId, ContactTime>,
    budgets: HashMap<NodeId, WriteBudget>,
    /// When the newest report of each node was made, by the node's own clock.
    reports: HashMap<NodeId, Timestamp>,
}

/// How long a report may be on its way. One that seems older was made after the node's clock was set back.
const LATE_MAX: SignedDuration = SignedDuration::from_mins(2);

impl Tables {
    fn has_newer_report(&self, node: NodeId, made: Option<Timestamp>) -> bool {
        let newest = self.reports.get(&node);
        let late = newest
            .zip(made)
            .map(|(newest, made)| newest.duration_since(made));
        late.is_some_and(|late| late.is_positive() && late < LATE_MAX)
    }
}

impl NodeContacts {
    fn lock(&self) -> MutexGuard<'_, Tables> {
        lock(&self.0)
    }

    /// Records a contact, with the time of the node's own clock if it sent one.
    pub(crate) fn record_contact(
        &self,
        node: NodeId,
        time: ContactTime,
        node_clock: Option<Timestamp>,
    ) {
        let now = time.at;
        let mut tables = self.lock();
        tables.reachable.insert(node, time);
        let load = tables.loads.entry(node).or_insert(NodeLoad {
            last_contact: now,
            clock_skew: None,
            used: None,
            pools: None,
        });
        load.last_contact = now;
        if let Some(clock) = node_clock {
            load.clock_skew = Some(clock.duration_since(now).as_secs_f64());
        }
    }

    /// Records the load that a node reported.
    pub(crate) fn record_load(&self, node: NodeId, used: Resources, pools: Vec<PoolFacts>) {
        if let Some(load) = self.lock().loads.get_mut(&node) {
            load.used = Some(used);
            load.pools = Some(pools);
        }
    }

    /// Whether a report was made after every other one of its node that has arrived; if so, it is the newest one from now on.
    ///
    /// A report that a node has stopped waiting for can arrive after the next one, and its status is out of date. The node
    /// has sent the content again.
    pub(crate) fn is_newest_report(&self, node: NodeId, made: Option<Timestamp>) -> bool {
        let mut tables = self.lock();
        let outdated = tables.has_newer_report(node, made);
        if let (false, Some(made)) = (outdated, made) {
            tables.reports.insert(node, made);
        }
        !outdated
    }

    /// Whether a report that was made later has arrived meanwhile.
    pub(crate) fn has_newer_report(&self, node: NodeId, made: Option<Timestamp>) -> bool {
        self.lock().has_newer_report(node, made)
    }

    /// Forgets a removed node.
    pub(crate) fn forget(&self, node: NodeId) {
        let mut tables = self.lock();
        tables.loads.remove(&node);
        tables.reachable.remove(&node);
        tables.budgets.remove(&node);
        tables.reports.remove(&node);
    }

    /// Whether a report of the node may be written now.
    pub(crate) fn may_write(&self, node: NodeId, running: Duration) -> bool {
        let mut tables = self.lock();
        let budget = tables.budgets.entry(node).or_default();
        budget.is_left(running)
    }

    /// Charges a written report to the node's budget.
    pub(crate) fn charge(&self, node: NodeId, cost: u64) {
        self.lock().budgets.entry(node).or_default().spend(cost);
    }

    /// Expects a contact from a node that was reachable before, within the usual time from now.
    pub(crate) fn expect(&self, node: NodeId, time: ContactTime) {
        self.lock().reachable.entry(node).or_insert(time);
    }

    /// Takes the nodes without contact for longer than `limit`. Each is returned once.
    pub(crate) fn take_expired(
        &self,
        running: Duration,
        limit: Duration,
    ) -> Vec<(NodeId, ContactTime)> {
        self.lock()
            .reachable
            .extract_if(|_, time| running.saturating_sub(time.running) > limit)
            .collect()
    }

    /// Whether the node was in contact again after it was taken as expired.
    pub(crate) fn is_reachable(&self, node: NodeId) -> bool {
        self.lock().reachable.contains_key(&node)
    }

    /// The load that a node reported last; `None` before its first contact with this process.
    pub(crate) fn load(&self, node: NodeId) -> Option<NodeLoad> {
        self.lock().loads.get(&node).cloned()
    }

    /// The nodes that have any entry here.
    pub(crate) fn known_nodes(&self) -> Vec<NodeId> {
        let tables = self.lock();
        let nodes = tables.loads.keys().chain(tables.reachable.keys());
        let nodes = nodes.chain(tables.budgets.keys());
        let all: HashSet<_> = nodes.chain(tables.reports.keys()).collect();
        all.into_iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_that_arrive_late_are_outdated_and_a_clock_that_was_set_back_is_not() {
        let contacts = NodeContacts::default();
        let node = NodeId::generate();
        let at = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).ok();
        for (made, newest) in [
            (at(0), true),
            (at(10), true),
            // Repeated: it changes nothing that is newer.
            (at(10), true),
            (at(9), false),
            (at(-100), false),
            (None, true),
            (at(11), true),
            // Set back by an hour: this is the newest report from now on.
            (at(-3600), true),
            (at(-3590), true),
            (at(-3595), false),
        ] {
            assert_eq!(contacts.is_newest_report(node, made), newest, "{made:?}");
        }
        assert!(contacts.is_newest_report(NodeId::generate(), at(0)));
        contacts.forget(node);
        assert!(contacts.is_newest_report(node, at(-3595)));
    }
}
