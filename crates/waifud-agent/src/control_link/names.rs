//! The names of other nodes' instances, as waifud sent them.
//!
//! They are staged and saved together with the revision that a watch resumes from, like the peers ([`super::peers`]): guests
//! resolve what is saved, so the names are there while waifud is away and after a restart.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use waifud_api::agent::{NodeNames, Peer};
use waifud_types::{NodeId, Revision};

/// The durable record of all names.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NamesRecord {
    /// The revision of the newest names; `None` before the first ones.
    pub revision: Option<Revision>,
    /// Sorted by node.
    pub nodes: Vec<Arc<NodeNames>>,
}

/// The names in memory: the saved ones, and changes that are not saved yet.
#[derive(Debug, Default)]
pub struct NamesTable {
    saved: Names,
    staged: Option<Names>,
    /// Whether the saved names have changed since the last question.
    changed: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Names {
    revision: Option<Revision>,
    nodes: BTreeMap<NodeId, Arc<NodeNames>>,
}

impl NamesTable {
    /// The saved names.
    pub fn of(record: NamesRecord) -> Self {
        let nodes = record.nodes.into_iter();
        Self {
            saved: Names {
                revision: record.revision,
                nodes: nodes.map(|names| (names.node, names)).collect(),
            },
            ..Self::default()
        }
    }

    /// The saved names of every node.
    pub fn names(&self) -> Vec<Arc<NodeNames>> {
        self.saved.nodes.values().cloned().collect()
    }

    /// The revision that a watch resumes from.
    pub fn revision(&self) -> Option<Revision> {
        self.saved.revision
    }

    pub fn has_staged(&self) -> bool {
        self.staged.is_some()
    }

    /// Begins a watch, which sends staged changes again.
    pub fn begin_watch(&mut self) {
        self.staged = None;
    }

    /// Stages the names of some nodes.
    pub fn put(&mut self, nodes: Vec<NodeNames>) {
        let staged = self.stage();
        for names in nodes {
            staged.revision = Some(names.revision);
            staged.nodes.insert(names.node, Arc::new(names));
        }
    }

    /// Stages the removal of a node that left the cluster.
    pub fn remove(&mut self, node: NodeId) {
        if self.current().nodes.contains_key(&node) {
            self.stage().nodes.remove(&node);
        }
    }

    /// Stages the removal of all nodes other than these peers.
    pub fn retain(&mut self, peers: &[Peer]) {
        let is_peer = |node: &NodeId| peers.iter().any(|peer| peer.id == *node);
        if !self.current().nodes.keys().all(is_peer) {
            self.stage().nodes.retain(|node, _| is_peer(node));
        }
    }

    /// The record to save, if it differs from the saved one.
    pub fn to_save(&self) -> Option<NamesRecord> {
        let staged = self.staged.as_ref()?;
        (*staged != self.saved).then(|| NamesRecord {
            revision: staged.revision,
            nodes: staged.nodes.values().cloned().collect(),
        })
    }

    /// The staged changes are saved.
    pub fn mark_saved(&mut self) {
        if let Some(staged) = self.staged.take() {
            self.changed |= staged.nodes != self.saved.nodes;
            self.saved = staged;
        }
    }

    /// Whether the saved names have changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn current(&self) -> &Names {
        self.staged.as_ref().unwrap_or(&self.saved)
    }

    fn stage(&mut self) -> &mut Names {
        let saved = &self.saved;
        self.staged.get_or_insert_with(|| saved.clone())
    }
}
