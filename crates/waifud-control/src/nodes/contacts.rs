//! When each node was last in contact, what it reported about its load, and how much it may still write.
//!
//! In memory only: after a restart it is empty and fills with the next reports, so an idle cluster writes nothing to disk.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use jiff::SignedDuration;
use waifud_api::agent::MessageOrder;
use waifud_kit::sync::lock;
use waifud_types::node::{PoolFacts, Resources};
use waifud_types::{BootId, NodeId, ProcessId, Timestamp};

use super::copies::{Judgement, Machine, Machines};
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
    /// The order of each node's messages.
    messages: HashMap<NodeId, Messages>,
    /// The machines that use each node's key.
    machines: HashMap<NodeId, Machines>,
    /// When a copy of a node was recorded last.
    copies_noted: HashMap<NodeId, Duration>,
}

/// When a hello or a report was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Made {
    /// Its place among the messages of its node; `None` if the agent does not send it.
    pub(crate) order: Option<MessageOrder>,
    /// By the node's own clock. Compared only without an order, because a clock can be set back.
    pub(crate) at: Option<Timestamp>,
}

/// The newest message of a node.
#[derive(Default, Debug)]
struct Messages {
    newest: Option<MessageOrder>,
    /// The last processes before the present one.
    former: VecDeque<ProcessId>,
    /// When the newest report without an order was made.
    made: Option<Timestamp>,
}

/// How long a report without an order may be on its way. One that seems older was made after the node's clock was set back.
const LATE_MAX: SignedDuration = SignedDuration::from_mins(2);
/// The shortest time between two events about copies of a node.
const COPY_NOTED: Duration = Duration::from_mins(10);
/// How many former processes of a node are known.
const FORMER_MAX: usize = 16;

impl Messages {
    /// Whether a newer message has arrived.
    fn has_newer(&self, made: Made) -> bool {
        let Some(order) = made.order else {
            let late = self.made.zip(made.at);
            let late = late.map(|(newest, made)| newest.duration_since(made));
            return late.is_some_and(|late| late.is_positive() && late < LATE_MAX);
        };
        let newest = self.newest.filter(|newest| newest.process == order.process);
        newest.is_some_and(|newest| newest.number > order.number)
            || self.former.contains(&order.process)
    }

    fn record(&mut self, made: Made) {
        let Some(order) = made.order else {
            self.made = made.at.or(self.made);
            return;
        };
        let former = self.newest.replace(order);
        if let Some(former) = former.filter(|former| former.process != order.process) {
            self.former.push_back(former.process);
            if self.former.len() > FORMER_MAX {
                self.former.pop_front();
            }
        }
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

    /// Whether a message was made after every other one of its node that has arrived; if so, it is the newest one from now
    /// on.
    ///
    /// A message that a node has stopped waiting for can arrive after the next one, and its content is out of date. The node
    /// has sent the content again.
    pub(crate) fn is_newest(&self, node: NodeId, made: Made) -> bool {
        let mut tables = self.lock();
        let messages = tables.messages.entry(node).or_default();
        let outdated = messages.has_newer(made);
        if !outdated {
            messages.record(made);
        }
        !outdated
    }

    /// Whether a message that was made later has arrived meanwhile.
    pub(crate) fn has_newer(&self, node: NodeId, made: Made) -> bool {
        let tables = self.lock();
        let messages = tables.messages.get(&node);
        messages.is_some_and(|messages| messages.has_newer(made))
    }

    /// Whether a hello is from the node itself or from a copy of it.
    pub(crate) fn judge_hello(&self, node: NodeId, from: Machine) -> Judgement {
        let mut tables = self.lock();
        let in_contact = tables.reachable.contains_key(&node);
        let machines = tables.machines.entry(node).or_default();
        machines.hello(from, in_contact)
    }

    /// Whether another message is from the node itself or from a copy of it.
    pub(crate) fn judge_message(&self, node: NodeId, boot: Option<BootId>) -> Judgement {
        let mut tables = self.lock();
        let machines = tables.machines.get_mut(&node);
        machines.map_or(Judgement::Node, |machines| machines.message(boot))
    }

    /// The boot of the machine that has said hello last and is no copy.
    pub(crate) fn boot(&self, node: NodeId) -> Option<BootId> {
        self.lock().machines.get(&node)?.boot()
    }

    /// Whether the node has said hello to this process.
    pub(crate) fn has_said_hello(&self, node: NodeId) -> bool {
        let tables = self.lock();
        let machines = tables.machines.get(&node);
        machines.is_some_and(Machines::is_known)
    }

    /// Whether a boot is one of a copy of the node.
    pub(crate) fn is_copy(&self, node: NodeId, boot: BootId) -> bool {
        let tables = self.lock();
        let machines = tables.machines.get(&node);
        machines.is_some_and(|machines| machines.is_copy(boot))
    }

    /// Whether a copy of the node is to be recorded as an event: not again for a while, since it tries again every few seconds.
    pub(crate) fn take_note_of_copy(&self, node: NodeId, running: Duration) -> bool {
        let mut tables = self.lock();
        let before = tables.copies_noted.get(&node);
        let is_due = before.is_none_or(|noted| running.saturating_sub(*noted) > COPY_NOTED);
        if is_due {
            tables.copies_noted.insert(node, running);
        }
        is_due
    }

    /// Forgets a removed node.
    pub(crate) fn forget(&self, node: NodeId) {
        let mut tables = self.lock();
        tables.loads.remove(&node);
        tables.reachable.remove(&node);
        tables.budgets.remove(&node);
        tables.messages.remove(&node);
        tables.machines.remove(&node);
        tables.copies_noted.remove(&node);
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
        let nodes = nodes.chain(tables.machines.keys());
        let all: HashSet<_> = nodes.chain(tables.messages.keys()).collect();
        all.into_iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_ordered_by_their_numbers_within_a_process_and_processes_by_their_first_message()
    {
        let contacts = NodeContacts::default();
        let node = NodeId::generate();
        let [first, second] = [(); 2].map(|()| ProcessId::generate());
        let made = |process, number| Made {
            order: Some(MessageOrder { process, number }),
            // No clock plays a part.
            at: Timestamp::from_second(i64::try_from(1000 - number).unwrap()).ok(),
        };
        for (process, number, newest) in [
            (first, 1, true),
            (first, 3, true),
            (first, 3, true),
            (first, 2, false),
            (second, 1, true),
            (first, 4, false),
            (second, 2, true),
        ] {
            let made = made(process, number);
            assert_eq!(contacts.has_newer(node, made), !newest, "{made:?}");
            assert_eq!(contacts.is_newest(node, made), newest, "{made:?}");
        }
        // Only a bounded number of former processes is kept.
        for _ in 0..2 * FORMER_MAX {
            assert!(contacts.is_newest(node, made(ProcessId::generate(), 1)));
        }
        let former = contacts.lock().messages[&node].former.len();
        assert_eq!(former, FORMER_MAX);
        contacts.forget(node);
        assert!(contacts.is_newest(node, made(second, 1)));
    }

    #[test]
    fn without_an_order_reports_that_arrive_late_are_outdated_and_a_clock_that_was_set_back_is_not()
    {
        let contacts = NodeContacts::default();
        let node = NodeId::generate();
        let at = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).ok();
        let made = |at| Made { order: None, at };
        for (clock, newest) in [
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
            assert_eq!(contacts.is_newest(node, made(clock)), newest, "{clock:?}");
        }
        assert!(contacts.is_newest(NodeId::generate(), made(at(0))));
        contacts.forget(node);
        assert!(contacts.is_newest(node, made(at(-3595))));
    }
}
