//! Placement's view of nodes, and the rows that make a choice free of races.
//!
//! Both are used in one job of the writer, so that no other placement can reserve the same capacity in between.

use ipnet::Ipv4Net;
use rusqlite::Row;
use waifud_api::PlacementVerdict;
use waifud_types::node::Resources;
use waifud_types::spec::{DiskSpec, InstanceSpec};
use waifud_types::status::InstanceStatus;
use waifud_types::{ByteSize, InstanceId, Name, NodeId, Revision};

use crate::codec::{corrupt, count, id16, name, node_id, node16, size, to_i64, to_json};
use crate::nodes::{node, subnet};
use crate::{NodeRow, ReadTx, StoreError, Topic, WriteTx};

/// A node and the space reserved in its pools.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeCapacity {
    /// The node. Its `promised` holds the reserved CPUs and memory.
    pub node: NodeRow,
    /// Bytes of disk reserved, by pool.
    pub pools: Vec<(Name, ByteSize)>,
}

/// The disk space reserved in one pool of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolPromise {
    /// The node.
    pub node: NodeId,
    /// The pool.
    pub pool: Name,
    /// The sum of its volumes' sizes.
    pub promised: ByteSize,
}

/// A placement to store.
#[derive(Clone, Debug)]
pub struct PlacementRow<'a> {
    /// The instance.
    pub instance: InstanceId,
    /// Its node.
    pub node: NodeId,
    /// The spec with addresses filled in.
    pub spec: &'a InstanceSpec,
    /// The status with the node.
    pub status: &'a InstanceStatus,
    /// Why the node was chosen.
    pub verdicts: &'a StoredVerdicts,
}

/// Verdicts of a placement as they are stored. Lists of instances do not need them, so they are not parsed before they
/// are read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredVerdicts(String);

impl StoredVerdicts {
    /// Encodes verdicts.
    pub fn new(verdicts: &[PlacementVerdict]) -> Result<Self, StoreError> {
        to_json("verdicts", &verdicts).map(Self)
    }

    /// Verdicts from a column.
    pub(crate) fn of(row: &Row<'_>, column: &'static str) -> Result<Self, StoreError> {
        Ok(Self(row.get(column)?))
    }

    /// Parses the verdicts.
    pub fn read(&self) -> Result<Vec<PlacementVerdict>, StoreError> {
        serde_json::from_str(&self.0).map_err(|e| corrupt("placement")(e.into()))
    }
}

impl ReadTx<'_> {
    /// Every node with its capacity, by name.
    pub fn node_capacities(&self) -> Result<Vec<NodeCapacity>, StoreError> {
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
                Ok(NodeCapacity { node, pools })
            })
            .collect()
    }

    /// The reserved space of every pool of every node.
    pub fn pool_promises(&self) -> Result<Vec<PoolPromise>, StoreError> {
        self.all(POOL_PROMISES, [], |row| {
            Ok(PoolPromise {
                node: node_id(row, "node")?,
                pool: name(row, "pool")?,
                promised: size(row, "promised")?,
            })
        })
    }

    /// What a node reserves for an instance.
    pub fn reservation(
        &self,
        id: InstanceId,
        node: NodeId,
    ) -> Result<Option<Resources>, StoreError> {
        self.first(RESERVATION, (id16(&id), node16(&node)), |row| {
            Ok::<_, StoreError>(Resources {
                cpus: u32::try_from(count(row, "cpus")?).unwrap_or(u32::MAX),
                memory_bytes: size(row, "memory_bytes")?,
            })
        })
    }

    /// The guest subnet of a node.
    pub fn subnet_of(&self, id: NodeId) -> Result<Option<Ipv4Net>, StoreError> {
        self.first(
            "SELECT subnet FROM nodes WHERE id = ?1",
            [node16(&id)],
            subnet,
        )
    }
}

pub(crate) const POOL_PROMISES: &str =
    "SELECT node, pool, sum(size_bytes) AS promised FROM volumes GROUP BY node, pool";
pub(crate) const RESERVATION: &str =
    "SELECT cpus, memory_bytes FROM reservations WHERE instance = ?1 AND node = ?2";

impl WriteTx<'_> {
    /// Stores a placement: owner, reservation and volumes. Addresses are stored with their leases.
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
                &choice.verdicts.0,
                to_i64(revision.number),
            ))?;
        self.conn
            .prepare_cached(
                "INSERT INTO ownership (instance, node, epoch, role) SELECT id, node, epoch, 'owner' FROM instances WHERE id = ?1",
            )?
            .execute([id])?;
        self.reserve_all(choice.instance, choice.node, choice.spec)?;
        self.capacities.placed(choice.node, choice.spec);
        self.touch(Topic::Instance(choice.instance));
        self.touch(Topic::Node(choice.node));
        Ok(())
    }

    /// Reserves an instance's CPUs, memory and disks on a node.
    pub(crate) fn reserve_all(
        &mut self,
        id: InstanceId,
        node: NodeId,
        spec: &InstanceSpec,
    ) -> Result<(), StoreError> {
        let promised = Resources {
            cpus: spec.cpus,
            memory_bytes: spec.memory_bytes,
        };
        self.reserve(id, node, promised)?;
        let mut volume = self.conn.prepare_cached(
            "INSERT INTO volumes (instance, disk, node, pool, size_bytes) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        for disk in &spec.disks {
            volume.execute((
                id16(&id),
                disk.name.as_str(),
                node16(&node),
                disk.pool.as_str(),
                to_i64(disk.size_bytes.bytes()),
            ))?;
        }
        Ok(())
    }

    /// Changes the reservation of a placed instance on a node. Returns whether it changed.
    pub fn set_reservation(
        &mut self,
        id: InstanceId,
        node: NodeId,
        promised: Resources,
    ) -> Result<bool, StoreError> {
        if self.reservation(id, node)? == Some(promised) {
            return Ok(false);
        }
        // Deleted and inserted again, so that the triggers update the sums.
        self.conn
            .prepare_cached("DELETE FROM reservations WHERE instance = ?1 AND node = ?2")?
            .execute((id16(&id), node16(&node)))?;
        self.reserve(id, node, promised)?;
        Ok(true)
    }

    fn reserve(
        &mut self,
        id: InstanceId,
        node: NodeId,
        promised: Resources,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO reservations (instance, node, cpus, memory_bytes) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((
                id16(&id),
                node16(&node),
                promised.cpus,
                to_i64(promised.memory_bytes.bytes()),
            ))?;
        Ok(())
    }

    /// Changes the sizes of a placed instance's volumes on its owner.
    pub fn set_volume_sizes(
        &mut self,
        id: InstanceId,
        disks: &[DiskSpec],
    ) -> Result<(), StoreError> {
        let mut volume = self.conn.prepare_cached(
            "UPDATE volumes SET size_bytes = ?3
              WHERE instance = ?1 AND disk = ?2 AND node = (SELECT node FROM instances WHERE id = ?1)",
        )?;
        for disk in disks {
            volume.execute((
                id16(&id),
                disk.name.as_str(),
                to_i64(disk.size_bytes.bytes()),
            ))?;
        }
        Ok(())
    }

    /// Stores why no node was chosen.
    pub fn set_verdicts(
        &mut self,
        id: InstanceId,
        verdicts: &StoredVerdicts,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE instances SET placement = ?2 WHERE id = ?1")?
            .execute((id16(&id), &verdicts.0))?;
        Ok(())
    }
}
