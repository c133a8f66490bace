//! What is true now and is never written down: heartbeats, loads, steps at work.
//!
//! After a restart it is empty and fills with the next reports; an idle cluster writes nothing to disk.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use waifud_types::evidence::GuestEvidence;
use waifud_types::node::{PoolFacts, Resources};
use waifud_types::status::StepStatus;
use waifud_types::{InstanceId, NodeId, Timestamp};

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
    signs: HashMap<NodeId, Timestamp>,
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
    pub fn heard_of(&self, node: NodeId, now: Timestamp, its_clock: Option<Timestamp>) {
        let mut tables = self.lock();
        tables.signs.insert(node, now);
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
    }

    /// A node that was reachable when we started: it has from now on to show itself.
    pub fn expect(&self, node: NodeId, now: Timestamp) {
        self.lock().signs.entry(node).or_insert(now);
    }

    /// Nodes without a sign of life since `limit`, each told of once.
    pub fn fallen_silent(&self, limit: Timestamp) -> Vec<(NodeId, Timestamp)> {
        self.lock()
            .signs
            .extract_if(|_, sign| *sign < limit)
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

    /// The step that an instance's driver is at.
    pub fn step(&self, instance: InstanceId) -> Option<StepStatus> {
        self.lock().steps.get(&instance).cloned()
    }
}
