//! The only crate with SQL: one SQLite file, one writer with group commit, and concurrent readers.
//!
//! [`Store::write`] takes a closure that gets a [`WriteTx`] and calls its typed functions. The closure is queued for
//! the only writer and acknowledged once its changes are on disk (WAL, `synchronous=FULL`). [`Store::read`] does the
//! same with a [`ReadTx`] on a separate connection. No other crate uses statements, rows or locks.
//!
//! A change that is visible to users calls [`WriteTx::emit`] in the same transaction. The number of the event is the
//! revision of the change, and after the commit [`Store::subscribe`] wakes all waiting callers. Rows that a node's
//! watch sends contain the revision of their last change. So a watch resumes by requesting newer rows, even if the
//! history in between was trimmed.

mod age;
pub mod backup;
mod boot;
mod bundles;
mod codec;
mod connection;
pub mod credentials;
mod downloads;
mod error;
mod events;
mod fabric;
mod fabric_clients;
pub mod failpoints;
mod firewall;
mod health;
mod idempotency;
mod images;
mod instances;
mod joining;
mod leases;
mod migrate;
mod moves;
mod names;
mod networks;
mod node_admin;
mod node_capacities;
mod nodes;
mod ownership;
mod peers;
mod placing;
mod published;
mod query;
mod readers;
mod removed_nics;
mod slice;
mod templates;
mod tokens;
mod tombstones;
mod tx;
mod waiting;
mod wakeups;
mod writer;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension};
use tokio::sync::watch;
use waifud_types::{Incarnation, Revision};

pub use bundles::StoredBundle;
pub use downloads::DownloadRow;
pub use error::{StoreError, Taken};
pub use events::{EventFilter, NewEvent};
pub use fabric::FabricRow;
pub use fabric_clients::FabricClientRow;
pub use idempotency::{Remembered, StoredAnswer};
pub use images::ImageRow;
pub use instances::{InstanceRow, NewInstance, Owner};
pub use joining::{JoinTokenRow, NodeKeyRow};
pub use leases::LeaseRow;
pub use migrate::SCHEMA;
pub use moves::{IncomingRow, MoveRow};
pub use names::NodesNames;
pub use networks::{NetworkRow, NicRow};
pub use nodes::{DrainRow, NewNode, NodeRow, UnmanagedSummary};
pub use ownership::ReleaseRow;
pub use peers::{DeletedObject, PeerRow};
pub use placing::{NodeCapacity, PlacementRow, PoolPromise, StoredVerdicts};
pub use query::InstanceFilter;
pub use removed_nics::RemovedNicRow;
pub use slice::SliceRow;
pub use templates::{ImageTraits, NewTemplate, TemplateRow, TemplateSource};
pub use tokens::TokenRow;
pub use tombstones::TombstoneRow;
pub use tx::{ReadTx, WriteTx};
pub use waiting::{Waiting, WaitingPlace};
pub use wakeups::Topic;

/// Labels of an instance or of a node.
pub type Labels = std::collections::BTreeMap<String, String>;

use health::Health;
use readers::Readers;
use wakeups::Wakeups;
use writer::{Core, Queue, TypedJob};

/// How the store executes jobs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// A writer thread and this many reading connections.
    Threads {
        /// The number of concurrent reads.
        readers: usize,
    },
    /// Every job at once on the caller's thread, for deterministic simulations.
    Inline,
}

enum Engine {
    Thread {
        queue: Option<Queue>,
        thread: Option<std::thread::JoinHandle<()>>,
    },
    Inline(Mutex<Core>),
}

struct Inner {
    engine: Engine,
    readers: Readers,
    health: Health,
    incarnation: Incarnation,
    wakeups: Arc<Wakeups>,
}

/// The database. Cheap to clone. Dropping the last clone waits until the queue is empty.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the database, creates it if it does not exist (0600), and migrates it. `fresh` becomes the incarnation of
    /// a new database.
    pub fn open(path: &Path, mode: Mode, fresh: Incarnation) -> Result<Self, StoreError> {
        let open_error = |source| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        let mut conn = Connection::open(path).map_err(open_error)?;
        restrict(path);
        let statements = match mode {
            Mode::Threads { .. } => 128,
            // Those of readers, too.
            Mode::Inline => 1024,
        };
        connection::configure(&conn, statements)?;
        conn.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
             PRAGMA trusted_schema = OFF; PRAGMA journal_size_limit = 67108864;",
        )
        .map_err(open_error)?;
        migrate::migrate(&mut conn, path)?;
        let incarnation = incarnation(&conn, fresh)?;
        health::must_be_writable(&conn, path)?;
        let newest = events::newest(&conn)?;
        let wakeups = Arc::new(Wakeups::new(newest));
        // What a rollback of a savepoint needs, at most one job's data, is kept in memory. In a file, writing it took
        // an eighth of a create.
        conn.execute_batch("PRAGMA temp_store = MEMORY")
            .map_err(open_error)?;
        let capacities = node_capacities::NodeCapacities::of(&conn)?;
        let core = Core {
            conn,
            incarnation,
            wakeups: Arc::clone(&wakeups),
            capacities,
            dir: path.parent().unwrap_or(Path::new(".")).to_owned(),
            failing: false,
            last_failure: health::LastFailure::default(),
        };
        let health = Health::of(path, Arc::clone(&core.last_failure));
        let (engine, connections) = match mode {
            Mode::Inline => (Engine::Inline(Mutex::new(core)), 1),
            Mode::Threads { readers } => {
                let (queue, thread) = writer::spawn(core).map_err(StoreError::Thread)?;
                let engine = Engine::Thread {
                    queue: Some(queue),
                    thread: Some(thread),
                };
                (engine, readers)
            }
        };
        Ok(Self {
            inner: Arc::new(Inner {
                engine,
                readers: Readers::new(path, connections),
                health,
                incarnation,
                wakeups,
            }),
        })
    }

    /// Queues a change and waits until it is durable. If the job returns an error, its changes are rolled back. Once
    /// queued, it is executed even if the caller stops waiting.
    pub async fn write<T, E, F>(&self, job: F) -> Result<T, E>
    where
        F: FnOnce(&mut WriteTx<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (job, answer) = TypedJob::new(job);
        match &self.inner.engine {
            Engine::Inline(core) => core
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .run_group(vec![Box::new(job)]),
            Engine::Thread { queue, .. } => {
                let queue = queue.as_ref().ok_or(StoreError::Closed)?;
                queue.send(Box::new(job)).map_err(|_| StoreError::Closed)?;
            }
        }
        answer
            .await
            .unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }

    /// Reads a consistent snapshot that includes every acknowledged write.
    pub async fn read<T, E, F>(&self, job: F) -> Result<T, E>
    where
        F: FnOnce(ReadTx<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        if let Engine::Inline(core) = &inner.engine {
            // The only connection: another one would read everything again after each change. With `Bug::LateCommit`, it
            // also sees what is not committed yet, so that only a crash shows the bug.
            let core = core.lock().unwrap_or_else(PoisonError::into_inner);
            return job(ReadTx::new(&core.conn, inner.incarnation));
        }
        let _permit = self
            .inner
            .readers
            .permits
            .acquire()
            .await
            .map_err(|_| StoreError::Closed)?;
        tokio::task::spawn_blocking(move || inner.read_now(job))
            .await
            .unwrap_or_else(|_| Err(StoreError::Panicked.into()))
    }

    /// Why changes cannot be stored, in a sentence; `None` if they can, as far as that is known without a write.
    /// Briefly blocks on the filesystem.
    pub fn write_error(&self) -> Option<String> {
        self.inner.health.write_error()
    }

    /// The incarnation of this database.
    pub fn incarnation(&self) -> Incarnation {
        self.inner.incarnation
    }

    /// The newest committed revision.
    pub fn revision(&self) -> Revision {
        Revision {
            incarnation: self.inner.incarnation,
            number: self.inner.wakeups.newest(),
        }
    }

    /// How often something was committed since the database was opened. While it is the same, reads have the same result.
    pub fn commits(&self) -> u64 {
        self.inner.wakeups.commits()
    }

    /// The number of the newest event, as it grows.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.wakeups.subscribe()
    }

    /// Wakes whenever a change of the topic is committed. Subscribe first, then read.
    pub fn subscribe_topic(&self, topic: Topic) -> watch::Receiver<u64> {
        self.inner.wakeups.subscribe_topic(topic)
    }
}

impl Inner {
    fn read_now<T, E: From<StoreError>>(
        &self,
        job: impl FnOnce(ReadTx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.readers
            .with(|conn| job(ReadTx::new(conn, self.incarnation)))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The writer's connection is closed last, because only a connection that can write merges the log into the
        // file.
        self.readers.close();
        if let Engine::Thread { queue, thread } = &mut self.engine {
            drop(queue.take());
            // A job may drop the last handle, and a thread cannot wait for itself.
            let own = std::thread::current().id();
            if let Some(thread) = thread.take_if(|thread| thread.thread().id() != own) {
                let _ended_one_way_or_another = thread.join();
            }
        }
    }
}

/// Only the owner may read the database, because it contains user-data. Best effort: the directory is private, too.
fn restrict(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if let Err(error) = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)) {
        tracing::warn!(%error, "the database's permissions could not be set");
    }
}

fn incarnation(conn: &Connection, fresh: Incarnation) -> Result<Incarnation, StoreError> {
    let stored: Option<String> = conn
        .query_row(
            "SELECT value FROM meta WHERE key = 'incarnation'",
            [],
            |row| row.get(0),
        )
        .optional()?;
    if let Some(text) = stored {
        return u32::from_str_radix(&text, 16)
            .map(Incarnation)
            .map_err(|e| codec::corrupt("incarnation")(e.into()));
    }
    conn.execute(
        "INSERT INTO meta (key, value) VALUES ('incarnation', ?1)",
        [fresh.to_string()],
    )?;
    Ok(fresh)
}
