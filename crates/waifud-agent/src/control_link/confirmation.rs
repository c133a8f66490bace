//! What a node does after waifud's database was restored: it executes no deletion until an administrator confirms the
//! database, and reports again what the database does not contain.

use waifud_types::{Incarnation, InstanceId};

use crate::control_link::durable::DurableError;
use crate::control_link::outcome::Affected;
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

    /// waifud sends an instance in an epoch that this node has released. If a restored database contains the instance and
    /// not its release, the release is reported again. A deletion that was ordered before the restore must not destroy the
    /// disks, as with an instance that was not released.
    pub(super) fn bring_back_release(
        &self,
        inner: &mut Inner,
        id: InstanceId,
    ) -> Result<Affected, DurableError> {
        let Some(record) = inner.record(id) else {
            return Ok(Affected::None);
        };
        let left_slice = record
            .release
            .is_some_and(|known| known.in_slice == Some(false));
        let deletion_held = inner.is_held() && record.tombstone.is_some() && !record.destroyed;
        if !left_slice && !deletion_held {
            return Ok(Affected::None);
        }
        self.change(inner, id, |record| {
            if deletion_held {
                record.tombstone = None;
            }
            if let Some(release) = &mut record.release {
                release.in_slice = Some(true);
            }
        })?;
        Ok(Affected::Instances(vec![id]))
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
