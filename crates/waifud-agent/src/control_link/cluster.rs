//! What the table has of the cluster: the other nodes, and the names of their instances.

use std::sync::Arc;

use waifud_api::agent::{NodeNames, Peer};
use waifud_types::Revision;

use crate::control_link::durable::DurableError;
use crate::control_link::table::{Inner, Table};

impl Table {
    /// The other nodes of the cluster, as saved.
    pub fn peers(&self) -> Vec<Peer> {
        self.inner().peers.peers()
    }

    /// The names of other nodes' instances, as saved.
    pub fn names(&self) -> Vec<Arc<NodeNames>> {
        self.inner().names.names()
    }

    /// The revision of the saved names, from which the next watch resumes.
    pub fn names_revision(&self) -> Option<Revision> {
        self.inner().names.revision()
    }

    /// Whether changes of peers or names, or the revision of an instance, are not saved yet.
    pub fn has_staged(&self) -> bool {
        let inner = self.inner();
        inner.peers.has_staged() || inner.names.has_staged() || inner.staged_revision.is_some()
    }

    /// Saves changes of peers and names, and the revision of saved instances. They are durable when this returns.
    pub fn save_staged(&self) -> Result<(), DurableError> {
        let mut inner = self.inner();
        if let Some(record) = inner.names.to_save() {
            self.durable.save_names(&record)?;
        }
        inner.names.mark_saved();
        let peers = self.save_staged_peers(&mut inner)?;
        let staged = peers.into_iter().chain(inner.staged_revision);
        match staged.max_by_key(|revision| revision.number) {
            Some(revision) => self.save_revision(&mut inner, revision),
            None => Ok(()),
        }
    }

    /// Whether the saved peers have changed since the last call.
    pub fn take_changed_peers(&self) -> bool {
        self.inner().peers.take_changed()
    }

    /// Whether the saved names have changed since the last call.
    pub fn take_changed_names(&self) -> bool {
        self.inner().names.take_changed()
    }

    /// Saves staged changes of peers, and returns the revision of the newest one.
    pub(super) fn save_staged_peers(
        &self,
        inner: &mut Inner,
    ) -> Result<Option<Revision>, DurableError> {
        if let Some(record) = inner.peers.to_save() {
            self.durable.save_peers(&record)?;
        }
        Ok(inner.peers.mark_saved())
    }
}
