//! Administration of nodes: labels, and removal with a subnet that stays reserved.

use ipnet::Ipv4Net;
use waifud_types::{Name, NodeId, Revision, Timestamp};

use crate::codec::{node16, to_json};
use crate::nodes::{node, subnet};
use crate::{DrainRow, Labels, NodeRow, ReadTx, StoreError, Topic, WriteTx};

impl ReadTx<'_> {
    /// Whether a removed node of this name or id still has its subnet reserved.
    pub fn is_removed_node(&self, name_or_id: &str) -> Result<bool, StoreError> {
        let id = name_or_id.parse::<NodeId>().ok();
        Ok(self
            .conn
            .prepare_cached("SELECT 1 FROM removed_nodes WHERE name = ?1 OR id = ?2")?
            .exists((name_or_id, id.as_ref().map(node16)))?)
    }

    /// The nodes that are being drained, by name.
    pub fn draining(&self) -> Result<Vec<NodeRow>, StoreError> {
        self.all(
            "SELECT * FROM nodes WHERE drain_began_at IS NOT NULL ORDER BY name",
            [],
            node,
        )
    }

    /// Whether a node is being drained.
    pub fn is_any_draining(&self) -> Result<bool, StoreError> {
        Ok(self
            .conn
            .prepare_cached("SELECT 1 FROM nodes WHERE drain_began_at IS NOT NULL LIMIT 1")?
            .exists([])?)
    }
}

impl ReadTx<'_> {
    /// The reserved subnet of the last removed node of this name.
    pub fn subnet_of_removed(&self, name: &Name) -> Result<Option<Ipv4Net>, StoreError> {
        self.first(
            "SELECT subnet FROM removed_nodes WHERE name = ?1 ORDER BY removed_at DESC, id LIMIT 1",
            [name.as_str()],
            subnet,
        )
    }
}

impl WriteTx<'_> {
    /// Replaces the labels that administrators set on a node.
    pub fn set_node_labels(&mut self, id: NodeId, labels: &Labels) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE nodes SET labels = ?2 WHERE id = ?1")?
            .execute((node16(&id), to_json("labels", labels)?))?;
        Ok(())
    }

    /// Records whether a node accepts no new instances.
    pub fn set_node_cordoned(&mut self, id: NodeId, cordoned: bool) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE nodes SET cordoned = ?2 WHERE id = ?1")?
            .execute((node16(&id), cordoned))?;
        Ok(())
    }

    /// Records that a node is being drained, or not any more.
    pub fn set_node_drain(
        &mut self,
        id: NodeId,
        drain: Option<&DrainRow>,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "UPDATE nodes SET drain_began_at = ?2, drain_new_address = ?3 WHERE id = ?1",
            )?
            .execute((
                node16(&id),
                drain.map(|drain| drain.began_at.as_microsecond()),
                drain.is_some_and(|drain| drain.new_address),
            ))?;
        Ok(())
    }

    /// Deletes the key of a node. Its connections end, and it can only come back with a join token.
    pub fn forget_node_key(&mut self, id: NodeId) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("DELETE FROM node_keys WHERE node = ?1")?
            .execute([node16(&id)])?;
        self.touch(Topic::Node(id));
        Ok(())
    }

    /// Removes a node and its tombstones. The node must have no instances and no parts in others. Its subnet stays reserved until it is purged.
    /// `revision` is that of the event about the removal.
    pub fn remove_node(
        &mut self,
        row: &NodeRow,
        at: Timestamp,
        revision: Revision,
    ) -> Result<(), StoreError> {
        let id = node16(&row.id);
        let fabric = self.fabric()?.kind;
        self.conn
            .prepare_cached("DELETE FROM tombstones WHERE node = ?1")?
            .execute([id])?;
        self.conn
            .prepare_cached("DELETE FROM nodes WHERE id = ?1")?
            .execute([id])?;
        self.conn
            .prepare_cached(
                "INSERT INTO removed_nodes (id, name, subnet, removed_at) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((
                id,
                row.name.as_str(),
                row.subnet.to_string(),
                at.as_microsecond(),
            ))?;
        self.touch(Topic::Node(row.id));
        self.fabric_was(fabric, revision)?;
        self.peer_removed(row.id, revision)
    }

    /// Removes the reservation of a subnet, for a node that joins with the name of the removed one.
    pub fn release_subnet_of_removed(
        &mut self,
        name: &Name,
        subnet: Ipv4Net,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("DELETE FROM removed_nodes WHERE name = ?1 AND subnet = ?2")?
            .execute((name.as_str(), subnet.to_string()))?;
        Ok(())
    }

    /// Releases the subnets of removed nodes of this name or id.
    pub fn purge_node(&mut self, name_or_id: &str) -> Result<(), StoreError> {
        let id = name_or_id.parse::<NodeId>().ok();
        self.conn
            .prepare_cached("DELETE FROM removed_nodes WHERE name = ?1 OR id = ?2")?
            .execute((name_or_id, id.as_ref().map(node16)))?;
        Ok(())
    }
}
