//! Confirmations of a restored database: from then on, the node executes deletions again.

use waifud_types::Incarnation;

use crate::control_link::durable::DurableError;
use crate::control_link::table::{Inner, Table};

impl Table {
    /// An administrator confirms this incarnation. Returns whether deletions were held for it.
    pub fn confirm(&self, incarnation: Incarnation) -> Result<bool, DurableError> {
        let mut inner = self.inner();
        if inner.node.unconfirmed != Some(incarnation) {
            return Ok(false);
        }
        self.end_hold(&mut inner)?;
        self.save_staged_peers(&mut inner)?;
        Ok(true)
    }

    /// Notes a confirmation in the node's slice.
    ///
    /// One that arrives while a watch from the beginning sends the slice counts at the end of the slice: the restored
    /// database may contain an instance that was deleted after the backup, and a confirmed node would take it for one from
    /// before its deletion.
    pub(super) fn note_confirmation(&self, inner: &mut Inner) -> Result<(), DurableError> {
        let slice = inner.node.slice.as_ref();
        let confirmed = slice.and_then(|slice| slice.confirmed);
        if inner.named.is_some() || confirmed.is_none() || inner.node.unconfirmed != confirmed {
            return Ok(());
        }
        tracing::warn!(
            "the restored database is confirmed: this node executes waifud's deletions again"
        );
        self.end_hold(inner)
    }

    fn end_hold(&self, inner: &mut Inner) -> Result<(), DurableError> {
        let mut node = inner.node.clone();
        node.unconfirmed = None;
        self.save_node(inner, node)?;
        inner.peers.confirmed();
        inner.count_all();
        Ok(())
    }
}
