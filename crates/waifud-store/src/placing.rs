//! Placement's own view of nodes, and the rows that make a choice race-free.
//!
//! Both are used in one job of the writer: nobody else can promise the same room in between.

use ipnet::Ipv4Net;
use waifud_api::PlacementVerdict;
use waifud_types::spec::InstanceSpec;
use waifud_types::status::InstanceStatus;
use waifud_types::{ByteSize, InstanceId, Name, NodeId, Revision};

use crate::codec::{id16, name, node_id, node16, size, to_i64, to_json};
use crate::nodes::node;
use crate::{NodeRow, ReadTx, StoreError, Topic, WriteTx};

/// A node and what is promised of its pools.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeRoom {
    /// The node; `promised` in it is CPUs and memory.
    pub node: NodeRow,
    /// Bytes of disk promised, by pool.
    pub pools: Vec<(Name, ByteSize)>,
}

/// Disk promised in one pool of one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolPromise {
    /// The node.
    pub node: NodeId,
    /// The pool.
    pub pool: Name,
    /// The sum of its volumes' sizes.
    pub promised: ByteSize,
}

/// A choice to write down.
#[derive(Clone, Debug)]
pub struct PlacementRow<'a> {
    /// The instance.
    pub instance: InstanceId,
    /// Its node.
    pub node: NodeId,
    /// The spec with addresses filled in.
    pub spec: &'a InstanceSpec,
    /// The status that says where it is placed.
    pub status: &'a InstanceStatus,
    /// How it was chosen.
    pub verdicts: &'a [PlacementVerdict],
}

impl ReadTx<'_> {
    /// Every node with its room, by name.
    pub fn rooms(&self) -> Result<Vec<NodeRoom>, StoreError> {
        let mut promises = self.pool_promises()?;
        self.conn
            .prepare_cached("SELECT * FROM nodes ORDER BY name")?
            .query_and_then([], node)?
            .map(|row| {
                let node = row?;
                let pools = promises
                    .extract_if(.., |p| p.node == node.id)
                    .map(|p| (p.pool, p.promised))
                    .collect();
                Ok(NodeRoom { node, pools })
            })
            .collect()
    }

    /// What is promised of every pool of every node.
    pub fn pool_promises(&self) -> Result<Vec<PoolPromise>, StoreError> {
        self.conn
            .prepare_cached(
                "SELECT node, pool, sum(size_bytes) AS promised FROM volumes GROUP BY node, pool",
            )?
            .query_and_then([], |row| {
                Ok(PoolPromise {
                    node: node_id(row, "node")?,
                    pool: name(row, "pool")?,
                    promised: size(row, "promised")?,
                })
            })?
            .collect()
    }

    /// The guests' subnet of a node.
    pub fn subnet_of(&self, id: NodeId) -> Result<Option<Ipv4Net>, StoreError> {
        Ok(self.node(id)?.map(|node| node.subnet))
    }
}

impl WriteTx<'_> {
    /// Writes a choice down: owner, reservation, volumes. Addresses are written with their leases.
    pub fn place(
        &mut self,
        choice: &PlacementRow<'_>,
        revision: Revision,
    ) -> Result<(), StoreError> {
        let id = id16(&choice.instance);
        self.conn
            .prepare_cached(
                "UPDATE instances SET node = ?2, spec = ?3, status = ?4, state = ?5, placement = ?6,
                        slice_revision = ?7 WHERE id = ?1",
            )?
            .execute((
                id,
                node16(&choice.node),
                to_json("a spec", choice.spec)?,
                to_json("a status", choice.status)?,
                choice.status.state.as_str(),
                to_json("verdicts", &choice.verdicts)?,
                to_i64(revision.number),
            ))?;
        self.conn
            .prepare_cached(
                "INSERT INTO reservations (instance, node, cpus, memory_bytes) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((
                id,
                node16(&choice.node),
                choice.spec.cpus,
                to_i64(choice.spec.memory_bytes.bytes()),
            ))?;
        let mut volume = self.conn.prepare_cached(
            "INSERT INTO volumes (instance, disk, node, pool, size_bytes) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        for disk in &choice.spec.disks {
            volume.execute((
                id,
                disk.name.as_str(),
                node16(&choice.node),
                disk.pool.as_str(),
                to_i64(disk.size_bytes.bytes()),
            ))?;
        }
        drop(volume);
        self.touch(Topic::Instance(choice.instance));
        self.touch(Topic::Node(choice.node));
        Ok(())
    }

    /// Notes why no node could be chosen.
    pub fn set_verdicts(
        &mut self,
        id: InstanceId,
        verdicts: &[PlacementVerdict],
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE instances SET placement = ?2 WHERE id = ?1")?
            .execute((id16(&id), to_json("verdicts", &verdicts)?))?;
        Ok(())
    }
}
