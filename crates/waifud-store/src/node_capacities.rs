//! Nodes' rooms, kept in the writer's memory from one create to the next.
//!
//! Placement looks at every node, and reading them all from their rows at each create costs more than all the rest of
//! it. What was read stays true as long as no row that it was read from has changed. Temporary triggers on the writer's
//! connection, the only one that writes, count each change of those rows, whoever makes it: a statement, another
//! trigger, a cascade. So the copy is used while that count stands still; other changes, such as what nodes report of
//! their guests, do not disturb it. Jobs that place instances and change rooms in no other way add their placements to
//! the copy. Whatever else changes rooms, the next asker reads the rows.

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
    /// Counts changes of rows that rooms are read from.
    changes: Arc<AtomicU64>,
    /// That count when the job at work began.
    began: u64,
}

struct Kept {
    capacities: Arc<Vec<NodeCapacity>>,
    /// The count of changes when they were true.
    changes: u64,
    /// What the job at work has placed.
    placed: Vec<(NodeId, InstanceSpec)>,
    /// Whether the job at work has asked.
    followed: bool,
}

impl NodeCapacities {
    /// No copy yet. From now on changes are counted on this connection.
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

    /// A job begins.
    pub(crate) fn begin(&mut self) {
        self.began = self.changes();
    }

    /// Every node with its room, by name, as [`ReadTx::node_capacities`] reads them.
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

    /// The job at work has placed an instance.
    pub(crate) fn placed(&mut self, node: NodeId, spec: &InstanceSpec) {
        if let Some(kept) = self.kept.as_mut().filter(|kept| kept.followed) {
            kept.placed.push((node, spec.clone()));
        }
    }

    /// The job is done and stays. When it asked for rooms, all that it did to them are its placements.
    pub(crate) fn keep(&mut self) {
        let changes = self.changes();
        let Some(kept) = self.kept.as_mut().filter(|kept| kept.followed) else {
            return;
        };
        kept.followed = false;
        let placed = std::mem::take(&mut kept.placed);
        if !placed.is_empty() {
            // Nobody holds it any more: it is copied only when a job has kept its own.
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

    /// The job is taken back. A copy of rows that it changed may be a copy of what never was.
    pub(crate) fn take_back(&mut self) {
        if self.changes() != self.began {
            self.forget();
        }
        if let Some(kept) = &mut self.kept {
            kept.followed = false;
            kept.placed.clear();
        }
    }

    /// More than one job was taken back.
    pub(crate) fn forget(&mut self) {
        self.kept = None;
    }
}

impl NodeCapacity {
    /// Adds an instance to what is promised, as the rows of its placement change the sums.
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
