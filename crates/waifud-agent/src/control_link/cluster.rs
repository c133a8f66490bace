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

    /// Whether changes of peers or names are not saved yet.
    pub fn has_unsaved_peers(&self) -> bool {
        let inner = self.inner();
        inner.peers.has_staged() || inner.names.has_staged()
    }

    /// Saves changes of peers and names. They are durable when this returns.
    pub fn save_peers(&self) -> Result<(), DurableError> {
        let mut inner = self.inner();
        if let Some(record) = inner.names.to_save() {
            self.durable.save_names(&record)?;
        }
        inner.names.mark_saved();
        match self.save_staged_peers(&mut inner)? {
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
