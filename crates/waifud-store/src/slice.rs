//! A node's slice: the instances that its watch sends.

use rusqlite::Row;
use waifud_api::agent::{AgentInstance, BundleRef, RescueImage};
use waifud_types::{Epoch, Generation, NodeId, Secret};

use crate::codec::{count, digest, instance_id, json, name, node16, size, to_i64, word};
use crate::nodes::maybe_net;
use crate::{ReadTx, StoreError};

/// An instance of the slice and the revision of its last change.
#[derive(Clone, PartialEq, Debug)]
pub struct SliceRow {
    /// The instance as it is sent to the node.
    pub instance: AgentInstance,
    /// The revision of the last change.
    pub slice_revision: u64,
}

impl ReadTx<'_> {
    /// Instances of a node that changed after `since`, in the order of their changes. Instances being deleted are left
    /// out: the node receives their tombstones. Those that the node releases are left out, too.
    pub fn slice(&self, node: NodeId, since: u64) -> Result<Vec<SliceRow>, StoreError> {
        self.rows(node, since, false)
    }

    /// Instances of a node whose firewalls name instances or labels, with the present addresses of these.
    pub fn slice_with_peers(&self, node: NodeId) -> Result<Vec<SliceRow>, StoreError> {
        if self.has_peers(node)? {
            self.rows(node, 0, true)
        } else {
            Ok(Vec::new())
        }
    }

    fn rows(&self, node: NodeId, since: u64, peers: bool) -> Result<Vec<SliceRow>, StoreError> {
        let of = (node16(&node), to_i64(since), peers);
        let mut rows: Vec<SliceRow> = self.all(SLICE, of, slice_row)?;
        for row in &mut rows {
            let instance = &mut row.instance;
            instance.firewall_peers = self.peer_addresses(&instance.spec.firewall)?;
        }
        Ok(rows)
    }
}

/// `?3` limits it to instances whose firewalls name instances or labels.
pub(crate) const SLICE: &str =
    "SELECT i.*, m.size_bytes AS image_size, m.virtual_size_bytes AS image_virtual_size,
          (SELECT json_group_object(w.name, w.bridge)
             FROM network_users u JOIN networks w ON w.name = u.network
            WHERE u.instance = i.id AND w.bridge IS NOT NULL) AS bridges,
          r.size_bytes AS rescue_size, r.virtual_size_bytes AS rescue_virtual_size,
          b.key AS bundle_key, b.size_bytes AS bundle_size
     FROM instances i
     JOIN images m ON m.digest = i.image
     LEFT JOIN images r ON r.digest = i.rescue_image
     JOIN bundles b ON b.digest = i.bundle
    WHERE i.node = ?1 AND i.slice_revision > ?2 AND i.deleting = 0 AND i.firewall_peers >= ?3
      AND EXISTS (SELECT 1 FROM ownership o
                   WHERE o.instance = i.id AND o.node = i.node AND o.role = 'owner')
    ORDER BY i.slice_revision";

fn slice_row(row: &Row<'_>) -> Result<SliceRow, StoreError> {
    let key: String = row.get("bundle_key")?;
    let rescue: Option<i64> = row.get("rescue_size")?;
    let rescue_image = rescue.map(|_| rescue_image(row)).transpose()?;
    Ok(SliceRow {
        slice_revision: count(row, "slice_revision")?,
        instance: AgentInstance {
            id: instance_id(row, "id")?,
            name: name(row, "name")?,
            epoch: Epoch(count(row, "epoch")?),
            generation: Generation(count(row, "generation")?),
            spec: json(row, "spec")?,
            image_size_bytes: size(row, "image_size")?,
            image_virtual_size_bytes: size(row, "image_virtual_size")?,
            rescue_image,
            datasource: word(row, "datasource")?,
            firmware: word(row, "firmware")?,
            bundle: BundleRef {
                digest: digest(row, "bundle")?,
                key: Secret::new(key),
                size_bytes: count(row, "bundle_size")?,
            },
            restored: row.get("restored")?,
            bridges: json(row, "bridges")?,
            home: maybe_net(row, "home")?,
            firewall_peers: Vec::new(),
        },
    })
}

fn rescue_image(row: &Row<'_>) -> Result<RescueImage, StoreError> {
    Ok(RescueImage {
        digest: digest(row, "rescue_image")?,
        size_bytes: size(row, "rescue_size")?,
        virtual_size_bytes: size(row, "rescue_virtual_size")?,
    })
}
