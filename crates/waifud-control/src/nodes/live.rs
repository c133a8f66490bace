//! What is true now and is never written down: heartbeats, loads, steps at work.
//!
//! After a restart it is empty and fills with the next reports; an idle cluster writes nothing to disk.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use waifud_types::evidence::GuestEvidence;
use waifud_types::node::{PoolFacts, Resources};
use waifud_types::status::StepStatus;
use waifud_types::{InstanceId, NodeId, Timestamp};

use crate::nodes::Budget;

/// What a node said last.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeLive {
    /// When.
    pub last_contact: Timestamp,
    /// How far its clock is ahead, in seconds.
    pub clock_skew: Option<f64>,
    /// What is in use on it.
    pub used: Option<Resources>,
    /// Its pools, as full as they are.
    pub pools: Option<Vec<PoolFacts>>,
}

#[derive(Default, Debug)]
struct Tables {
    nodes: HashMap<NodeId, NodeLive>,
    steps: HashMap<InstanceId, StepStatus>,
    evidence: HashMap<InstanceId, GuestEvidence>,
    /// Nodes that count as reachable, and the last sign of life of each: a contact, or our own start.
    signs: HashMap<NodeId, Sign>,
    /// What each node may still have written down.
    budgets: HashMap<NodeId, Budget>,
}

/// A sign of life: by a clock that nobody sets, and by the time of day.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sign {
    /// After so long a time of this process.
    pub running: Duration,
    /// The time of day, for people.
    pub at: Timestamp,
}

/// The tables.
#[derive(Default, Debug)]
pub struct Live {
    tables: Mutex<Tables>,
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node was heard of.
    pub fn record_contact(&self, node: NodeId, sign: Sign, its_clock: Option<Timestamp>) {
        let now = sign.at;
        let mut tables = self.lock();
        tables.signs.insert(node, sign);
        let entry = tables.nodes.entry(node).or_insert(NodeLive {
            last_contact: now,
            clock_skew: None,
            used: None,
            pools: None,
        });
        entry.last_contact = now;
        if let Some(clock) = its_clock {
            entry.clock_skew = Some(clock.duration_since(now).as_secs_f64());
        }
    }

    /// The node was removed.
    pub fn forget_node(&self, node: NodeId) {
        let mut tables = self.lock();
        tables.nodes.remove(&node);
        tables.signs.remove(&node);
        tables.budgets.remove(&node);
    }

    /// Whether the node may have something written down now.
    pub fn may_write(&self, node: NodeId, running: Duration) -> bool {
        let mut tables = self.lock();
        let budget = tables.budgets.entry(node).or_default();
        budget.is_left(running)
    }

    /// What the node said was written down, at this cost.
    pub fn has_written(&self, node: NodeId, cost: u64) {
        self.lock().budgets.entry(node).or_default().spend(cost);
    }

    /// A node that was reachable when we started: it has from now on to show itself.
    pub fn expect(&self, node: NodeId, sign: Sign) {
        self.lock().signs.entry(node).or_insert(sign);
    }

    /// Nodes without a sign of life for longer than `limit`, each told of once.
    pub fn take_expired(&self, running: Duration, limit: Duration) -> Vec<(NodeId, Sign)> {
        self.lock()
            .signs
            .extract_if(|_, sign| running.saturating_sub(sign.running) > limit)
            .collect()
    }

    /// Whether the node showed itself after it was told of as silent.
    pub fn has_spoken(&self, node: NodeId) -> bool {
        self.lock().signs.contains_key(&node)
    }

    /// What the node has in use.
    pub fn set_use(&self, node: NodeId, used: Resources, pools: Vec<PoolFacts>) {
        if let Some(entry) = self.lock().nodes.get_mut(&node) {
            entry.used = Some(used);
            entry.pools = Some(pools);
        }
    }

    /// What a node said last; null when it has not been heard of since this process started.
    pub fn node(&self, node: NodeId) -> Option<NodeLive> {
        self.lock().nodes.get(&node).cloned()
    }

    /// The step that an instance's driver is at. Says whether that is another step, or more of it.
    pub fn set_step(&self, instance: InstanceId, step: Option<StepStatus>) -> bool {
        let mut tables = self.lock();
        match step {
            Some(step) => tables.steps.insert(instance, step.clone()) != Some(step),
            None => tables.steps.remove(&instance).is_some(),
        }
    }

    /// What an instance's guest was seen to do.
    pub fn set_evidence(&self, instance: InstanceId, evidence: GuestEvidence) {
        self.lock().evidence.insert(instance, evidence);
    }

    /// What an instance's guest was seen to do; null when its node has not told since this process started.
    pub fn evidence(&self, instance: InstanceId) -> Option<GuestEvidence> {
        self.lock().evidence.get(&instance).cloned()
    }

    /// The instance is no more.
    pub fn forget(&self, instance: InstanceId) {
        let mut tables = self.lock();
        tables.steps.remove(&instance);
        tables.evidence.remove(&instance);
    }

    /// Instances of which something is known.
    pub fn instances(&self) -> Vec<InstanceId> {
        let tables = self.lock();
        let all: HashSet<_> = tables.steps.keys().chain(tables.evidence.keys()).collect();
        all.into_iter().copied().collect()
    }

    /// Nodes of which something is known.
    pub fn nodes(&self) -> Vec<NodeId> {
        let tables = self.lock();
        let nodes = tables.nodes.keys().chain(tables.signs.keys());
        let all: HashSet<_> = nodes.chain(tables.budgets.keys()).collect();
        all.into_iter().copied().collect()
    }

    /// The step that an instance's driver is at.
    pub fn step(&self, instance: InstanceId) -> Option<StepStatus> {
        self.lock().steps.get(&instance).cloned()
    }
}
