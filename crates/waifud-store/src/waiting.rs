//! Instances that wait for a node, in classes with equal requirements: if one of a class cannot be placed, the others
//! need not be examined. So even a hundred thousand waiting instances cost little.

use rusqlite::OptionalExtension;
use waifud_types::spec::InstanceSpec;
use waifud_types::{Digest, InstanceId, Name, NodeId};

use crate::codec::{id16, instance_id, node_id, to_json};
use crate::{ReadTx, StoreError};

// Without the name of the index, SQLite reads all instances without a node and sorts them, for each page.
pub(crate) const NEXT: &str =
    "SELECT created_at, id, wait_class FROM instances INDEXED BY instances_unplaced
    WHERE node IS NULL AND deleting = 0 AND lost_node IS NULL AND (created_at, id) > (?1, ?2)
    ORDER BY created_at, id LIMIT ?3";
pub(crate) const ANY: &str = "SELECT 1 FROM instances INDEXED BY instances_unplaced
    WHERE node IS NULL AND deleting = 0 AND lost_node IS NULL LIMIT 1";

/// A position in the list of waiting instances. The default is the beginning.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WaitingPlace {
    created_at: i64,
    id: Option<InstanceId>,
}

/// A waiting instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// Its id.
    pub id: InstanceId,
    /// A digest of its requirements, which is equal for equal requirements.
    pub class: String,
    /// The position after it.
    pub place: WaitingPlace,
}

impl ReadTx<'_> {
    /// The waiting instances after `after`, oldest first.
    pub fn waiting(&self, after: &WaitingPlace, limit: u32) -> Result<Vec<Waiting>, StoreError> {
        let id = after.id.as_ref().map_or(&[0; 16], id16);
        let begin = if after.id.is_some() {
            after.created_at
        } else {
            i64::MIN
        };
        self.all(NEXT, (begin, id, limit), |row| {
            let id = instance_id(row, "id")?;
            Ok(Waiting {
                id,
                class: row.get("wait_class")?,
                place: WaitingPlace {
                    created_at: row.get("created_at")?,
                    id: Some(id),
                },
            })
        })
    }

    /// Whether any instance waits for a node.
    pub fn is_anything_waiting(&self) -> Result<bool, StoreError> {
        let found: Option<i64> = self
            .conn
            .prepare_cached(ANY)?
            .query_row([], |row| row.get(0))
            .optional()?;
        Ok(found.is_some())
    }

    /// How many instances of a group each node has, including those being deleted.
    pub fn members_of(&self, group: &Name) -> Result<Vec<(NodeId, u32)>, StoreError> {
        self.all(
            "SELECT node, count(*) AS members FROM instances
                  WHERE spread_group = ?1 AND node IS NOT NULL GROUP BY node",
            [group.as_str()],
            |row| Ok((node_id(row, "node")?, row.get("members")?)),
        )
    }
}

/// The class of an instance: a digest of everything that decides which nodes are suitable for it.
pub(crate) fn class(spec: &InstanceSpec, arch: &str) -> Result<String, StoreError> {
    let nics: Vec<_> = spec
        .nics
        .iter()
        .map(|nic| (&nic.network, nic.address))
        .collect();
    let disks: Vec<_> = spec
        .disks
        .iter()
        .map(|disk| (&disk.pool, disk.size_bytes))
        .collect();
    let needs = (
        arch,
        spec.cpus,
        spec.memory_bytes,
        disks,
        nics,
        &spec.publish,
        &spec.placement,
        spec.firewall.is_open(),
    );
    let digest = Digest::of(to_json("what it needs", &needs)?.as_bytes());
    Ok(digest.hex().chars().take(32).collect())
}
