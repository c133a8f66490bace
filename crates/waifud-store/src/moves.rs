//! Moves of instances between nodes.
//!
//! Which node may run the instance is in `ownership`; a move says how the parts there change next.

use rusqlite::Row;
use waifud_api::agent::Incoming;
use waifud_types::ownership::Part;
use waifud_types::spec::InstanceSpec;
use waifud_types::status::InstanceStatus;
use waifud_types::{Epoch, InstanceId, MoveState, Name, NodeId, ReceiveState, Revision, Timestamp};

use crate::codec::{
    count, digest, id16, instance_id, json, name, node_id, node16, size, time, to_i64, to_word,
    word,
};
use crate::{ReadTx, StoreError, Topic, WriteTx};

/// A move.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MoveRow {
    /// The node that it leaves.
    pub source: NodeId,
    /// Its name.
    pub source_name: Name,
    /// The node that receives it.
    pub target: NodeId,
    /// Its name.
    pub target_name: Name,
    /// The state.
    pub state: MoveState,
    /// What the receiving node has reported last.
    pub received: ReceiveState,
    /// Whether the guest was on when its node was told to release it; until then, when the move began.
    pub was_on: bool,
    /// When it began.
    pub began_at: Timestamp,
    /// Whether the instance gets an address of the new node's subnet. Otherwise it keeps its own.
    pub new_address: bool,
}

/// An order to receive an instance, and its revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IncomingRow {
    /// The order.
    pub incoming: Incoming,
    /// The revision.
    pub slice_revision: u64,
}

impl ReadTx<'_> {
    /// Every instance that is being moved.
    pub fn moving(&self) -> Result<Vec<InstanceId>, StoreError> {
        self.all(
            "SELECT instance FROM moves ORDER BY began_at, instance",
            [],
            |row| instance_id(row, "instance"),
        )
    }

    /// The instances whose moves lead to or from a node.
    pub fn moves_of(&self, node: NodeId) -> Result<Vec<InstanceId>, StoreError> {
        self.all(
            "SELECT instance FROM moves WHERE source = ?1 OR target = ?1",
            [node16(&node)],
            |row| instance_id(row, "instance"),
        )
    }

    /// The instances that a node receives, as ordered after `since`, oldest first.
    pub fn incoming(&self, node: NodeId, since: u64) -> Result<Vec<IncomingRow>, StoreError> {
        self.all(INCOMING, (node16(&node), to_i64(since)), |row| {
            let spec: InstanceSpec = json(row, "spec")?;
            let status: InstanceStatus = json(row, "status")?;
            Ok(IncomingRow {
                slice_revision: count(row, "part_revision")?,
                incoming: Incoming {
                    id: instance_id(row, "id")?,
                    name: name(row, "name")?,
                    epoch: Epoch(count(row, "part_epoch")?),
                    source: name(row, "from_name")?,
                    image: digest(row, "image")?,
                    image_size_bytes: size(row, "image_size")?,
                    disks: spec.disks,
                    copy: word::<MoveState>(row, "move_state")? == MoveState::Copying,
                    was_on: row.get("was_on")?,
                    stopped_by: status.stopped_by,
                },
            })
        })
    }
}

// Repeats the condition of the index of ownership. A canceled move has a tombstone instead.
const INCOMING: &str = "SELECT i.*, o.epoch AS part_epoch, o.slice_revision AS part_revision, v.state AS move_state, v.was_on,
          m.size_bytes AS image_size, coalesce(s.name, v.source_name) AS from_name
     FROM ownership o
     JOIN instances i ON i.id = o.instance
     JOIN moves v ON v.instance = o.instance AND v.target = o.node
     JOIN images m ON m.digest = i.image
     LEFT JOIN nodes s ON s.id = v.source
    WHERE o.node = ?1 AND o.slice_revision > ?2 AND o.role <> 'owner' AND o.role = 'receiving'
      AND i.deleting = 0 AND v.state <> 'canceling'
    ORDER BY o.slice_revision";

impl WriteTx<'_> {
    /// Begins a move: stores it with the part of the receiving node, which reserves the instance's CPUs, memory and disks.
    pub fn begin_move(
        &mut self,
        id: InstanceId,
        moving: &MoveRow,
        part: &Part,
        spec: &InstanceSpec,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO moves (instance, source, source_name, target, target_name, state, received, was_on, began_at,
                                    new_address)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute((
                id16(&id),
                node16(&moving.source),
                moving.source_name.as_str(),
                node16(&moving.target),
                moving.target_name.as_str(),
                to_word("the state of a move", &moving.state)?,
                to_word("what was received", &moving.received)?,
                moving.was_on,
                moving.began_at.as_microsecond(),
                moving.new_address,
            ))?;
        self.set_part(id, part, revision)?;
        self.reserve_all(id, moving.target, spec)
    }

    /// Records whether the guest was on when its node was told to release it. The receiving node is told with the next change
    /// of the state.
    pub fn set_move_was_on(&mut self, id: InstanceId, was_on: bool) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE moves SET was_on = ?2 WHERE instance = ?1")?
            .execute((id16(&id), was_on))?;
        Ok(())
    }

    /// Changes the state of a move. The receiving node is told as of this revision.
    pub fn set_move_state(
        &mut self,
        id: InstanceId,
        state: MoveState,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE moves SET state = ?2 WHERE instance = ?1")?
            .execute((id16(&id), to_word("the state of a move", &state)?))?;
        let target = self.first(
            "SELECT target FROM moves WHERE instance = ?1",
            [id16(&id)],
            |row| node_id(row, "target"),
        )?;
        if let Some(target) = target {
            self.conn
                .prepare_cached(
                    "UPDATE ownership SET slice_revision = ?3
                      WHERE instance = ?1 AND node = ?2 AND role = 'receiving'",
                )?
                .execute((id16(&id), node16(&target), to_i64(revision.number)))?;
            self.touch(Topic::Node(target));
        }
        self.touch(Topic::Instance(id));
        Ok(())
    }

    /// Stores what the receiving node has reported.
    pub fn set_received(
        &mut self,
        id: InstanceId,
        received: ReceiveState,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE moves SET received = ?2 WHERE instance = ?1")?
            .execute((id16(&id), to_word("what was received", &received)?))?;
        self.touch(Topic::Instance(id));
        Ok(())
    }

    /// Ends a move.
    pub fn end_move(&mut self, id: InstanceId) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("DELETE FROM moves WHERE instance = ?1")?
            .execute([id16(&id)])?;
        self.touch(Topic::Instance(id));
        Ok(())
    }
}

/// The move in a row of instances; `None` if the instance is not being moved.
pub(crate) fn maybe_move(row: &Row<'_>) -> Result<Option<MoveRow>, StoreError> {
    if row.get::<_, Option<String>>("move_state")?.is_none() {
        return Ok(None);
    }
    Ok(Some(MoveRow {
        source: node_id(row, "move_source")?,
        source_name: name(row, "move_source_name")?,
        target: node_id(row, "move_target")?,
        target_name: name(row, "move_target_name")?,
        state: word(row, "move_state")?,
        received: word(row, "move_received")?,
        was_on: row.get("move_was_on")?,
        began_at: time(row, "move_began_at")?,
        new_address: row.get("move_new_address")?,
    }))
}
