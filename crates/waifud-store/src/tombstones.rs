//! Tombstones: orders to destroy, kept until their node has confirmed them.

use rusqlite::{OptionalExtension, Row};
use waifud_api::agent::Tombstone;
use waifud_types::{Epoch, InstanceId, NodeId, Revision, Timestamp};

use crate::codec::{count, id16, instance_id, name, node16, to_i64};
use crate::{ReadTx, StoreError, Topic, WriteTx};

/// A tombstone and its revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TombstoneRow {
    /// The order.
    pub tombstone: Tombstone,
    /// The revision.
    pub slice_revision: u64,
}

impl ReadTx<'_> {
    /// Tombstones of a node that are newer than `since`, oldest first.
    pub fn tombstones(&self, node: NodeId, since: u64) -> Result<Vec<TombstoneRow>, StoreError> {
        let sql = "SELECT * FROM tombstones WHERE node = ?1 AND slice_revision > ?2 ORDER BY slice_revision";
        self.all(sql, (node16(&node), to_i64(since)), row)
    }

    /// The epoch of the tombstone of one instance on one node.
    pub fn tombstone_epoch(
        &self,
        instance: InstanceId,
        node: NodeId,
    ) -> Result<Option<Epoch>, StoreError> {
        let epoch: Option<i64> = self
            .conn
            .prepare_cached("SELECT epoch FROM tombstones WHERE instance = ?1 AND node = ?2")?
            .query_row((id16(&instance), node16(&node)), |row| row.get(0))
            .optional()?;
        Ok(epoch.and_then(|e| u64::try_from(e).ok()).map(Epoch))
    }
}

impl WriteTx<'_> {
    /// Orders the destruction of an instance's copy on a node. Repeating the order only increases the epoch.
    pub fn put_tombstone(
        &mut self,
        node: NodeId,
        tombstone: &Tombstone,
        at: Timestamp,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO tombstones (instance, node, name, epoch, created_at, slice_revision)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT DO UPDATE SET epoch = max(epoch, excluded.epoch), slice_revision = excluded.slice_revision",
            )?
            .execute((
                id16(&tombstone.instance),
                node16(&node),
                tombstone.name.as_str(),
                to_i64(tombstone.epoch.0),
                at.as_microsecond(),
                to_i64(revision.number),
            ))?;
        self.touch(Topic::Node(node));
        Ok(())
    }

    /// Deletes a confirmed tombstone; false if there was none of that epoch or an older one.
    pub fn confirm_tombstone(
        &mut self,
        node: NodeId,
        instance: InstanceId,
        epoch: Epoch,
    ) -> Result<bool, StoreError> {
        let gone = self
            .conn
            .prepare_cached(
                "DELETE FROM tombstones WHERE instance = ?1 AND node = ?2 AND epoch <= ?3",
            )?
            .execute((id16(&instance), node16(&node), to_i64(epoch.0)))?;
        Ok(gone > 0)
    }
}

fn row(row: &Row<'_>) -> Result<TombstoneRow, StoreError> {
    Ok(TombstoneRow {
        tombstone: Tombstone {
            instance: instance_id(row, "instance")?,
            name: name(row, "name")?,
            epoch: Epoch(count(row, "epoch")?),
        },
        slice_revision: count(row, "slice_revision")?,
    })
}
