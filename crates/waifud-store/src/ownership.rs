//! The nodes that have a part in an instance, and what each of them reserves for it.
//!
//! An instance has at most one owner. During a handover the old owner releases the instance while the new one receives
//! it; both hold a reservation and volumes. `instances.node` is the owner, kept by triggers; while there is none, it is the
//! last owner, or another node with a part if that one's part has ended.

use rusqlite::Row;
use waifud_api::agent::Release;
use waifud_types::ownership::{OwnershipRole, Part};
use waifud_types::{Epoch, InstanceId, NodeId, Revision};

use crate::codec::{count, id16, instance_id, node_id, node16, to_i64, to_word, word};
use crate::{ReadTx, StoreError, Topic, WriteTx};

/// A release and the revision that ordered it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReleaseRow {
    /// The order.
    pub release: Release,
    /// The revision.
    pub slice_revision: u64,
}

impl ReadTx<'_> {
    /// The nodes that have a part in an instance; none until it is placed.
    pub fn ownership(&self, id: InstanceId) -> Result<Vec<Part>, StoreError> {
        self.all(
            "SELECT * FROM ownership WHERE instance = ?1 ORDER BY node",
            [id16(&id)],
            part,
        )
    }

    /// The part of one node in an instance.
    pub fn part_in(&self, id: InstanceId, node: NodeId) -> Result<Option<Part>, StoreError> {
        self.first(
            "SELECT * FROM ownership WHERE instance = ?1 AND node = ?2",
            (id16(&id), node16(&node)),
            part,
        )
    }

    /// The epoch of an instance whose owner, or last owner, is the node; `None` for an instance of another node.
    pub fn epoch_on(&self, id: InstanceId, node: NodeId) -> Result<Option<Epoch>, StoreError> {
        self.first(
            "SELECT epoch FROM instances WHERE id = ?1 AND node = ?2",
            (id16(&id), node16(&node)),
            |row| Ok(Epoch(count(row, "epoch")?)),
        )
    }

    /// The lowest epoch that may be assigned; 0 unless the database was restored.
    pub fn epoch_floor(&self) -> Result<Epoch, StoreError> {
        crate::backup::epoch_floor(self.conn)
    }

    /// Instances in which a node has a part without being the owner.
    pub fn handovers_on(&self, node: NodeId) -> Result<Vec<InstanceId>, StoreError> {
        self.all(HANDOVERS, [node16(&node)], |row| {
            instance_id(row, "instance")
        })
    }

    /// Instances that their node has released, or was told to release, and that are not being moved or deleted.
    pub fn released_without_move(&self) -> Result<Vec<InstanceId>, StoreError> {
        self.all(RELEASED_WITHOUT_MOVE, [], |row| {
            instance_id(row, "instance")
        })
    }

    /// The instances that left the slice of a node after `since`, with the revision, oldest first.
    pub fn left_slice(
        &self,
        node: NodeId,
        since: u64,
    ) -> Result<Vec<(InstanceId, u64)>, StoreError> {
        let sql = "SELECT id, revision FROM deleted_objects WHERE revision > ?1 AND kind = ?2 ORDER BY revision";
        self.all(sql, (to_i64(since), left_kind(node)), |row| {
            Ok((instance_id(row, "id")?, count(row, "revision")?))
        })
    }

    /// Releases of a node that were ordered after `since`, recorded or not, oldest first. Instances being deleted are
    /// left out: the node receives their tombstones.
    pub fn releases(&self, node: NodeId, since: u64) -> Result<Vec<ReleaseRow>, StoreError> {
        self.all(RELEASES, (node16(&node), to_i64(since)), |row| {
            let Part { epoch, stop, .. } = part(row)?;
            Ok(ReleaseRow {
                release: Release {
                    instance: instance_id(row, "instance")?,
                    epoch,
                    stop,
                },
                slice_revision: count(row, "slice_revision")?,
            })
        })
    }
}

/// The kind, in `deleted_objects`, of instances that left the slice of a node.
fn left_kind(node: NodeId) -> String {
    format!("instance of {node}")
}

// Both repeat the condition of the index.
const HANDOVERS: &str = "SELECT instance FROM ownership WHERE node = ?1 AND role <> 'owner'";
const RELEASES: &str = "SELECT o.* FROM ownership o JOIN instances i ON i.id = o.instance
   WHERE o.node = ?1 AND o.slice_revision > ?2 AND o.role <> 'owner' AND o.role <> 'receiving' AND i.deleting = 0
   ORDER BY o.slice_revision";

// Reads all parts: it is used only after a restore, when nodes report what is on them or are confirmed.
const RELEASED_WITHOUT_MOVE: &str =
    "SELECT o.instance FROM ownership o JOIN instances i ON i.id = o.instance AND i.node = o.node
   WHERE o.role <> 'owner' AND o.role <> 'receiving' AND i.deleting = 0
     AND NOT EXISTS (SELECT 1 FROM moves m WHERE m.instance = i.id)
   ORDER BY o.instance";

impl WriteTx<'_> {
    /// Stores a node's part in an instance. Fails if that made a second owner. A new release is sent to the node as of this
    /// revision, also one that the node has recorded before it was stored here.
    pub fn set_part(
        &mut self,
        id: InstanceId,
        part: &Part,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO ownership (instance, node, epoch, role, stop, slice_revision, off)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (instance, node) DO UPDATE SET epoch = excluded.epoch, role = excluded.role,
                     stop = excluded.stop, off = excluded.off,
                     slice_revision = CASE WHEN excluded.role = 'released' AND epoch = excluded.epoch
                                                AND role IN ('releasing', 'released') THEN slice_revision
                                           ELSE excluded.slice_revision END",
            )?
            .execute((
                id16(&id),
                node16(&part.node),
                to_i64(part.epoch.0),
                to_word("a role", &part.role)?,
                part.stop,
                to_i64(revision.number),
                part.off,
            ))?;
        self.touch(Topic::Instance(id));
        self.touch(Topic::Node(part.node));
        Ok(())
    }

    /// Sets the epoch of an instance that has a new owner, which receives the instance as of this revision.
    pub fn set_epoch(
        &mut self,
        id: InstanceId,
        epoch: Epoch,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE instances SET epoch = ?2, slice_revision = ?3 WHERE id = ?1")?
            .execute((id16(&id), to_i64(epoch.0), to_i64(revision.number)))?;
        self.touch(Topic::Instance(id));
        Ok(())
    }

    /// Ends a node's part in an instance, and tells the node that the instance is not in its slice any more. The node keeps
    /// what it has of it, as unmanaged.
    pub fn leave_slice(
        &mut self,
        id: InstanceId,
        node: NodeId,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.end_part(id, node)?;
        self.conn
            .prepare_cached(
                "INSERT OR REPLACE INTO deleted_objects (kind, id, revision) VALUES (?1, ?2, ?3)",
            )?
            .execute((left_kind(node), id16(&id), to_i64(revision.number)))?;
        Ok(())
    }

    /// Ends a node's part in an instance, with its reservation, volumes and published ports.
    pub fn end_part(&mut self, id: InstanceId, node: NodeId) -> Result<(), StoreError> {
        for delete in [
            "DELETE FROM reservations WHERE instance = ?1 AND node = ?2",
            "DELETE FROM volumes WHERE instance = ?1 AND node = ?2",
            "DELETE FROM published WHERE instance = ?1 AND node = ?2",
            "DELETE FROM ownership WHERE instance = ?1 AND node = ?2",
        ] {
            self.conn
                .prepare_cached(delete)?
                .execute((id16(&id), node16(&node)))?;
        }
        self.touch(Topic::Instance(id));
        self.touch(Topic::Node(node));
        Ok(())
    }
}

fn part(row: &Row<'_>) -> Result<Part, StoreError> {
    Ok(Part {
        node: node_id(row, "node")?,
        epoch: Epoch(count(row, "epoch")?),
        role: word::<OwnershipRole>(row, "role")?,
        stop: row.get("stop")?,
        off: row.get("off")?,
    })
}

#[cfg(test)]
mod tests;
