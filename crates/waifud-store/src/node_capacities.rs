//! A copy of the nodes' capacities in the writer's memory, kept from one placement to the next.
//!
//! Placement examines every node, and reading all of them for each create would cost more than the rest of the create.
//! The copy is valid as long as no row that it was read from has changed. Temporary triggers count each change of those
//! rows on the writer's connection, the only one that writes, whether a statement, another trigger or a cascade makes
//! it. The copy is used while the count is unchanged. Other changes, for example reports of nodes, do not affect it. A
//! job whose only changes are placements adds them to the copy. After any other change the rows are read again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use waifud_types::spec::InstanceSpec;
use waifud_types::{ByteSize, NodeId};

use crate::placing::NodeCapacity;
use crate::{ReadTx, StoreError};

/// The tables that [`ReadTx::node_capacities`] reads. Reservations come to it as sums in `nodes`.
const READ_FROM: [&str; 2] = ["nodes", "volumes"];

/// The copy, when there is one.
pub(crate) struct NodeCapacities {
    kept: Option<Kept>,
    /// The number of changes of the rows that capacities are read from.
    changes: Arc<AtomicU64>,
    /// The number of changes when the current job began.
    began: u64,
}

struct Kept {
    capacities: Arc<Vec<NodeCapacity>>,
    /// The number of changes at which the copy is valid.
    changes: u64,
    /// The placements of the current job.
    placed: Vec<(NodeId, InstanceSpec)>,
    /// Whether the current job has read the copy.
    followed: bool,
}

impl NodeCapacities {
    /// Starts without a copy, and counts changes on this connection.
    pub(crate) fn of(conn: &Connection) -> Result<Self, StoreError> {
        let changes = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&changes);
        conn.create_scalar_function(
            "capacities_changed",
            0,
            FunctionFlags::SQLITE_UTF8,
            move |_| -> rusqlite::Result<Option<bool>> {
                counter.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            },
        )?;
        for table in READ_FROM {
            for change in ["INSERT", "UPDATE", "DELETE"] {
                conn.execute_batch(&format!(
                    "CREATE TEMP TRIGGER capacities_{table}_{change} AFTER {change} ON main.{table}
                     BEGIN SELECT capacities_changed(); END"
                ))?;
            }
        }
        Ok(Self {
            kept: None,
            changes,
            began: 0,
        })
    }

    fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Begins a job.
    pub(crate) fn begin(&mut self) {
        self.began = self.changes();
    }

    /// Every node with its capacity, by name, as [`ReadTx::node_capacities`] reads them.
    pub(crate) fn get(&mut self, tx: ReadTx<'_>) -> Result<Arc<Vec<NodeCapacity>>, StoreError> {
        let changes = self.changes();
        match &mut self.kept {
            Some(kept) if kept.changes == changes => {
                kept.followed = true;
                debug_assert!(
                    tx.node_capacities()
                        .is_ok_and(|read| read == *kept.capacities),
                    "capacities in memory are not those in the database"
                );
                Ok(Arc::clone(&kept.capacities))
            }
            _ => {
                let capacities = Arc::new(tx.node_capacities()?);
                self.kept = Some(Kept {
                    capacities: Arc::clone(&capacities),
                    changes,
                    placed: Vec::new(),
                    followed: true,
                });
                Ok(capacities)
            }
        }
    }

    /// Records that the current job has placed an instance.
    pub(crate) fn placed(&mut self, node: NodeId, spec: &InstanceSpec) {
        if let Some(kept) = self.kept.as_mut().filter(|kept| kept.followed) {
            kept.placed.push((node, spec.clone()));
        }
    }

    /// Ends a job whose changes stay. If it read the copy, placements are its only changes of capacities.
    pub(crate) fn keep(&mut self) {
        let changes = self.changes();
        let Some(kept) = self.kept.as_mut().filter(|kept| kept.followed) else {
            return;
        };
        kept.followed = false;
        let placed = std::mem::take(&mut kept.placed);
        if !placed.is_empty() {
            // Copies the value only if a job still holds it.
            let capacities = Arc::make_mut(&mut kept.capacities);
            for (node, spec) in placed {
                let found = capacities
                    .iter_mut()
                    .find(|capacity| capacity.node.id == node);
                if let Some(capacity) = found {
                    capacity.promise(&spec);
                }
            }
        }
        kept.changes = changes;
    }

    /// Ends a job that was rolled back. A copy of rows that it changed is invalid.
    pub(crate) fn take_back(&mut self) {
        if self.changes() != self.began {
            self.forget();
        }
        if let Some(kept) = &mut self.kept {
            kept.followed = false;
            kept.placed.clear();
        }
    }

    /// Discards the copy after several jobs were rolled back.
    pub(crate) fn forget(&mut self) {
        self.kept = None;
    }
}

impl NodeCapacity {
    /// Adds an instance to the reserved capacity, as its placement changes the sums in the rows.
    pub fn promise(&mut self, spec: &InstanceSpec) {
        let promised = &mut self.node.promised;
        promised.cpus = promised.cpus.saturating_add(spec.cpus);
        let memory = promised.memory_bytes.bytes();
        promised.memory_bytes = ByteSize(memory.saturating_add(spec.memory_bytes.bytes()));
        for disk in &spec.disks {
            match self
                .pools
                .binary_search_by(|(name, _)| name.cmp(&disk.pool))
            {
                Ok(at) => {
                    if let Some((_, size)) = self.pools.get_mut(at) {
                        *size = ByteSize(size.bytes().saturating_add(disk.size_bytes.bytes()));
                    }
                }
                Err(at) => self.pools.insert(at, (disk.pool.clone(), disk.size_bytes)),
            }
        }
    }
}
