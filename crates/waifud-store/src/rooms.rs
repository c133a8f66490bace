//! Nodes' rooms, kept in the writer's memory from one create to the next.
//!
//! Placement looks at every node, and reading them all from their rows at each create costs more than all the rest of
//! it. What was read stays true as long as no row of the database has changed, which SQLite counts on the connection
//! (`sqlite3_total_changes`, triggers included); the writer's is the only one that writes. So the copy is used while
//! that count stands still, except for what jobs do that place instances and change rooms in no other way: their
//! placements are added to the copy, and the count is taken anew. Whatever else happens, also a job or a commit that
//! failed, the next asker reads the rows.

use std::sync::Arc;

use rusqlite::Connection;
use waifud_types::spec::InstanceSpec;
use waifud_types::{ByteSize, NodeId};

use crate::placing::NodeRoom;
use crate::{ReadTx, StoreError};

/// The copy, when there is one.
#[derive(Default)]
pub(crate) struct Rooms {
    kept: Option<Kept>,
}

struct Kept {
    rooms: Arc<Vec<NodeRoom>>,
    /// The connection's count of changed rows when they were true.
    changes: u64,
    /// What the job at work has placed.
    placed: Vec<(NodeId, InstanceSpec)>,
    /// Whether the job at work has asked.
    followed: bool,
}

impl Rooms {
    /// Every node with its room, by name, as [`ReadTx::rooms`] reads them.
    pub(crate) fn get(&mut self, tx: ReadTx<'_>) -> Result<Arc<Vec<NodeRoom>>, StoreError> {
        let changes = tx.conn.total_changes();
        match &mut self.kept {
            Some(kept) if kept.changes == changes => {
                kept.followed = true;
                debug_assert!(
                    tx.rooms().is_ok_and(|read| read == *kept.rooms),
                    "rooms in memory are not those in the database"
                );
                Ok(Arc::clone(&kept.rooms))
            }
            _ => {
                let rooms = Arc::new(tx.rooms()?);
                self.kept = Some(Kept {
                    rooms: Arc::clone(&rooms),
                    changes,
                    placed: Vec::new(),
                    followed: true,
                });
                Ok(rooms)
            }
        }
    }

    /// The job at work has placed an instance.
    pub(crate) fn placed(&mut self, node: NodeId, spec: &InstanceSpec) {
        if let Some(kept) = self.kept.as_mut().filter(|kept| kept.followed) {
            kept.placed.push((node, spec.clone()));
        }
    }

    /// The job is done and stays. When it asked for rooms, all that it did to them are its placements.
    pub(crate) fn keep(&mut self, conn: &Connection) {
        let Some(kept) = self.kept.as_mut().filter(|kept| kept.followed) else {
            return;
        };
        kept.followed = false;
        let placed = std::mem::take(&mut kept.placed);
        if !placed.is_empty() {
            // Nobody holds it any more: it is copied only when a job has kept its own.
            let rooms = Arc::make_mut(&mut kept.rooms);
            for (node, spec) in placed {
                let room = rooms.iter_mut().find(|room| room.node.id == node);
                if let Some(room) = room {
                    promise(room, &spec);
                }
            }
        }
        kept.changes = conn.total_changes();
    }

    /// Something was taken back.
    pub(crate) fn forget(&mut self) {
        self.kept = None;
    }
}

/// As the rows of a placement change the sums.
fn promise(room: &mut NodeRoom, spec: &InstanceSpec) {
    let promised = &mut room.node.promised;
    promised.cpus = promised.cpus.saturating_add(spec.cpus);
    let memory = promised.memory_bytes.bytes();
    promised.memory_bytes = ByteSize(memory.saturating_add(spec.memory_bytes.bytes()));
    for disk in &spec.disks {
        match room
            .pools
            .binary_search_by(|(name, _)| name.cmp(&disk.pool))
        {
            Ok(at) => {
                if let Some((_, size)) = room.pools.get_mut(at) {
                    *size = ByteSize(size.bytes().saturating_add(disk.size_bytes.bytes()));
                }
            }
            Err(at) => room.pools.insert(at, (disk.pool.clone(), disk.size_bytes)),
        }
    }
}
