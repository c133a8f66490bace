//! Published ports: each port of a node belongs to one instance.

use waifud_types::spec::{Protocol, PublishSpec};
use waifud_types::{InstanceId, Name, NodeId};

use crate::codec::{id16, instance_id, name, node16};
use crate::error::taken;
use crate::{ReadTx, StoreError, Taken, WriteTx};

impl ReadTx<'_> {
    /// The instance that a port of a node is published to, even while the instance is being deleted.
    pub fn instance_on_port(
        &self,
        node: NodeId,
        protocol: Protocol,
        port: u16,
    ) -> Result<Option<(InstanceId, Name)>, StoreError> {
        self.first(
            "SELECT i.id, i.name FROM published p JOIN instances i ON i.id = p.instance
                  WHERE p.node = ?1 AND p.protocol = ?2 AND p.port = ?3",
            (node16(&node), protocol.as_str(), port),
            |row| Ok((instance_id(row, "id")?, name(row, "name")?)),
        )
    }
}

impl WriteTx<'_> {
    /// Sets the ports of the node that are published to the instance. `Taken` if another instance has one of them. During a
    /// move, those of the other node stay reserved, too.
    pub fn set_published(
        &mut self,
        instance: InstanceId,
        node: NodeId,
        ports: &[PublishSpec],
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("DELETE FROM published WHERE instance = ?1 AND node = ?2")?
            .execute((id16(&instance), node16(&node)))?;
        let mut insert = self.conn.prepare_cached(
            "INSERT INTO published (node, protocol, port, instance) VALUES (?1, ?2, ?3, ?4)",
        )?;
        for port in ports {
            insert
                .execute((
                    node16(&node),
                    port.protocol.as_str(),
                    port.port,
                    id16(&instance),
                ))
                .map_err(|e| taken(e, &[("published.port", Taken::Port)]))?;
        }
        Ok(())
    }
}
