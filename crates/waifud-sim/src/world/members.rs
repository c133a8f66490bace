//! Which machines are nodes of the cluster: machines join, are removed, and join again.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use waifud_kit::sync::lock;
use waifud_store::{InstanceFilter, InstanceRow, ReadTx};
use waifud_types::InstanceId;

use super::{Node, World};

impl World {
    /// The machines that are nodes.
    pub fn members(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.is_member())
    }

    /// A machine becomes a node. Returns false if waifud does not answer, or does not admit it.
    pub async fn join(self: &Arc<Self>, node: &Node) -> Result<bool> {
        // An answer that was lost is no obstacle: the token is for this name.
        let Ok(peer) = self.waifud.join(&node.name).await else {
            return Ok(false);
        };
        // Also what was still on its way to the machine when it was removed.
        for id in node.instances() {
            self.abandoned.add(&node.name, id);
        }
        // The daemon exits when it finds a new key, and is started again.
        node.kill_agent().await;
        node.admit(peer);
        lock(&self.cordons).insert(node.name.clone(), false);
        if self.was_restored() {
            // A machine that knows the database from before a restore is to be confirmed, too.
            lock(&self.unconfirmed).insert(node.name.clone());
        }
        node.start_agent(self)?;
        Ok(true)
    }

    /// Whether waifud has given up the copy on a machine.
    pub fn has_given_up(&self, node: &Node, id: InstanceId) -> bool {
        !node.is_member() || self.abandoned.contains(&node.name, id)
    }

    /// The node was removed: waifud has given up what is on it.
    pub async fn note_removal(&self, node: &Node) {
        node.leave();
        lock(&self.cordons).remove(&node.name);
        lock(&self.unconfirmed).remove(&node.name);
        lock(&self.drains).remove(&node.name);
        let on_it = node.instances();
        let mut not_given_up_before = BTreeSet::new();
        for id in &on_it {
            if !self.abandoned.contains(&node.name, *id) {
                not_given_up_before.insert(*id);
            }
            self.abandoned.add(&node.name, *id);
        }
        lock(&self.observed).forget(&node.name, &on_it);
        let read = |tx: ReadTx<'_>| tx.instances(&InstanceFilter::default(), "", 10_000);
        let rows = self.waifud.read(read);
        // An error of the database is found by the invariants.
        let Some(Ok(rows)) = rows.await else {
            return;
        };
        for row in rows {
            // Another node is the owner: this copy is what a move has left, and waifud may have ordered its deletion before
            // the removal.
            if row.node.is_some() && not_given_up_before.contains(&row.id) {
                self.abandoned.order_deletion(&node.name, row.id);
            }
            self.note_what_is_left_of(&row, &on_it);
        }
    }

    fn note_what_is_left_of(&self, row: &InstanceRow, on_it: &BTreeSet<InstanceId>) {
        if row.lost_node.is_some() {
            self.promises.change(row.id, |promise| {
                promise.lost = true;
                promise.may_vanish |= promise.moved;
                promise.release = None;
                promise.starts_before_reboot = None;
            });
            return;
        }
        // During a move, the instance returns to the disk from before the move.
        let mut nodes = self.nodes.iter();
        let owner = nodes.find(|owner| owner.id().is_some() && owner.id() == row.node);
        let owner = owner.filter(|_| on_it.contains(&row.id) && !row.deleting);
        if let Some(mark) = owner.and_then(|owner| owner.mark(row.id)) {
            self.written.set(row.id, mark);
        }
    }

    /// An instance that was lost gets new disks.
    pub fn note_recreation(&self, id: InstanceId, generation: Option<u64>) {
        self.written.forget(id);
        self.promises.change(id, |promise| {
            promise.lost = false;
            promise.may_stop = true;
            promise.starts_before_reboot = None;
            promise.generation = generation.unwrap_or(promise.generation);
        });
    }

    /// The disks of a machine are lost, and replaced by empty ones.
    pub async fn lose_disks(&self, node: &Node) -> Result<()> {
        for id in self.abandoned.take(&node.name) {
            let promise = self.promises.of(id);
            if promise.is_some_and(|promise| promise.lost) {
                self.written.forget(id);
            }
        }
        node.lose_disks().await
    }

    /// Forgets the copies on nodes that were given up and of which nothing is left, also if the instance was placed on the same
    /// node again. A deleted one is not: the node has not learned of its removal yet.
    pub(super) fn note_destroyed_copies(&self) {
        let is_deleted = |id| {
            let promise = self.promises.of(id);
            promise.is_some_and(|promise| promise.deleted)
        };
        let database = lock(&self.database).clone();
        // What the agent has recorded may be from before the removal, when the instance was the machine's, too.
        let is_given = |node: &Node, id| {
            let rows = database.as_ref().map(|(_, database)| &database.instances);
            let row = rows.and_then(|rows| rows.get(&id));
            let row = row.filter(|row| row.node.is_some() && row.node == node.id());
            row.is_some_and(|row| node.is_given(id, row.epoch))
        };
        for (name, id, ordered) in self.abandoned.all() {
            let mut members = self.members();
            let at = members.find(|node| node.name == name);
            let is_gone = at.is_some_and(|node| {
                !node.has(id) || (ordered && is_given(node, id) && !is_deleted(id))
            });
            if is_gone {
                self.abandoned.remove(&name, id);
            }
        }
    }
}
