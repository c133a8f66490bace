//! The parts of a run: waifud, the nodes, the wires between them, and what users were promised.

mod abandoned;
mod backup;
mod link;
mod members;
mod node;
mod promises;
mod streams;
mod unanswered;
mod waifud;
mod wire;
mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Result, bail};
use tempfile::TempDir;
use tokio::task::JoinSet;
use waifud_kit::sync::lock;
use waifud_storage::fake::image_bytes;
use waifud_types::{ByteSize, Digest, InstanceId};

pub use abandoned::Abandoned;
pub use backup::Backup;
pub use node::Node;
pub use promises::{Fields, Promise, Promises, Release};
pub use unanswered::Unanswered;
pub use waifud::{Answer, Waifud};
pub use wire::{Cuts, Wire};
pub use written::Written;

use crate::clock::SimClock;
use crate::disk;
use crate::history::History;
use crate::invariants::{self, Database, Observed, Violation};

/// The names of the nodes.
const NAMES: [&str; 4] = ["alder", "birch", "cedar", "dogwood"];

/// A network on a bridge that every host has.
pub const LAN: &str = "lan";
const BRIDGE: &str = "br0";

/// The largest number of nodes.
pub const NODES_MAX: usize = NAMES.len();

/// The numbers of a process of waifud and of its last commit, and what the database contained then.
type ReadDatabase = ((u64, u64), Arc<Database>);

/// Everything of one run.
pub struct World {
    /// Whether waifud's database may be replaced with older copies.
    pub restores: bool,
    /// The time.
    pub clock: SimClock,
    /// What happened.
    pub history: History,
    /// The control service.
    pub waifud: Waifud,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// What users were promised.
    pub promises: Promises,
    /// What guests wrote to their disks.
    pub written: Written,
    /// Copies of instances on machines that were removed.
    pub abandoned: Abandoned,
    /// The nodes that a user has cordoned, or uncordoned since. Those of which it is not known are missing.
    pub cordons: Mutex<BTreeMap<String, bool>>,
    /// waifud's database at the last check, and the number of its last commit.
    pub database: Mutex<Option<ReadDatabase>>,
    /// What was observed at earlier checks.
    pub observed: Mutex<Observed>,
    /// The image of every instance.
    pub image: (Vec<u8>, Digest),
    /// The nodes that an operator drains, or may be draining.
    pub drains: Mutex<BTreeSet<String>>,
    /// The instances whose guests do not release nics that are removed.
    pub holding_nics: Mutex<BTreeSet<InstanceId>>,
    /// The backup of waifud's database that can be restored.
    pub backup: Mutex<Option<Backup>>,
    /// The nodes that an operator has not confirmed since the last restore.
    pub unconfirmed: Mutex<BTreeSet<String>>,
    /// Requests without an answer, whose outcome is not known yet.
    pub unanswered: Mutex<Vec<Unanswered>>,
    /// Crashes to come.
    pub crashes: Mutex<JoinSet<()>>,
    /// How many processes and nodes crashed in the middle of something.
    pub crashed: Mutex<u64>,
    /// waifud's database was restored since the cluster was at rest.
    undecided: AtomicBool,
    violation: Mutex<Option<Violation>>,
    /// A user's request is under way: it may have taken effect, and nothing is promised yet.
    asking: AtomicBool,
    _dir: TempDir,
}

impl World {
    /// A cluster with this many machines, of which so many are nodes.
    pub async fn new(
        seed: u64,
        machines: usize,
        nodes: usize,
        restores: bool,
    ) -> Result<Arc<Self>> {
        // In memory, because syncing to a disk would only cost time.
        let memory = Path::new("/dev/shm");
        let dir = tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir())?;
        std::fs::create_dir(dir.path().join("nodes"))?;
        // Not waifud's database: SQLite syncs each commit, and every copy would cost time.
        disk::watch(&dir.path().join("nodes"));
        let clock = SimClock::start();
        let at = |name: &str| -> Result<_> {
            let path = dir.path().join(name);
            std::fs::create_dir(&path)?;
            Ok(path)
        };
        let waifud = Waifud::new(at("waifud")?, clock.another(), seed);
        waifud.start().await?;
        let image = image_bytes(ByteSize::mib(1), 1);
        waifud.set_up_template(&image).await?;
        waifud.set_up_network(LAN, BRIDGE).await?;
        let mut all = Vec::new();
        for (index, name) in NAMES.iter().take(machines).enumerate() {
            let dir = at(&format!("nodes/{name}"))?;
            all.push(Node::new(index, name, dir, clock.another(), seed)?);
        }
        let world = Arc::new(Self {
            restores,
            history: History::new(clock.clone()),
            clock,
            waifud,
            nodes: all,
            promises: Promises::default(),
            written: Written::default(),
            abandoned: Abandoned::default(),
            cordons: Mutex::default(),
            database: Mutex::default(),
            observed: Mutex::default(),
            image,
            drains: Mutex::default(),
            holding_nics: Mutex::default(),
            backup: Mutex::default(),
            undecided: AtomicBool::new(false),
            unconfirmed: Mutex::default(),
            unanswered: Mutex::default(),
            crashes: Mutex::default(),
            crashed: Mutex::default(),
            violation: Mutex::default(),
            asking: AtomicBool::new(false),
            _dir: dir,
        });
        for node in world.nodes.iter().take(nodes) {
            if !world.join(node).await? {
                bail!("{} cannot join", node.name);
            }
        }
        Ok(world)
    }

    /// Checks what must always be true, and keeps the first violation.
    pub async fn check(&self) {
        if self.violation().is_some() || self.asking.load(Ordering::SeqCst) {
            return;
        }
        self.settle_unanswered().await;
        self.note_destroyed_copies();
        if let Err(violation) = invariants::always(self).await {
            self.violate(violation);
        }
    }

    /// An invariant has looked at one more object.
    pub fn looked(&self, invariant: &'static str) {
        lock(&self.observed).look(invariant);
    }

    /// Whether waifud's database was ever restored.
    pub fn was_restored(&self) -> bool {
        self.waifud.restores() > 0
    }

    /// Whether operators have not decided yet about what a restored database does not contain.
    pub fn is_undecided(&self) -> bool {
        self.undecided.load(Ordering::SeqCst)
    }

    /// A backup from before a change of owners or nodes is not restored: what nodes have of it would have to be sorted out by hand.
    pub fn forget_backup(&self) {
        *lock(&self.backup) = None;
    }

    /// waifud's database was restored.
    pub fn set_undecided(&self) {
        self.undecided.store(true, Ordering::SeqCst);
    }

    /// The cluster has come to rest: what was requested has happened.
    pub fn settled(&self) {
        self.undecided.store(false, Ordering::SeqCst);
        self.promises.settled();
    }

    /// Sets whether a guest keeps nics that are removed.
    pub fn hold_nics(&self, id: InstanceId, hold: bool) {
        for node in &self.nodes {
            node.hold_nics(id, hold);
        }
    }

    /// How often the instance's domain was started, without copies that were given up.
    pub fn starts_of(&self, id: InstanceId) -> u64 {
        let mut starts = 0;
        for node in &self.nodes {
            if !self.has_given_up(node, id) {
                let domains = node.domains().into_iter();
                let of = domains.filter(|domain| domain.id == id);
                starts += of.map(|domain| domain.starts).sum::<u64>();
            }
        }
        starts
    }

    /// Marks the beginning and the end of a user's request. Between them nothing is checked.
    pub fn set_asking(&self, asking: bool) {
        self.asking.store(asking, Ordering::SeqCst);
    }

    /// A request that waifud answers with 500 is a violation.
    pub fn require_no_failure(&self, request: &str, answer: Option<&Answer>) {
        let Some(answer) = answer.filter(|answer| answer.status == 500) else {
            return;
        };
        let text = String::from_utf8_lossy(&answer.bytes);
        self.violate(Violation {
            invariant: "no_error_is_hidden",
            what: format!("{request}: 500 {text}"),
        });
    }

    /// Records a violation, unless there is one already.
    pub fn violate(&self, violation: Violation) {
        lock(&self.violation).get_or_insert(violation);
    }

    /// The first violation.
    pub fn violation(&self) -> Option<Violation> {
        lock(&self.violation).clone()
    }
}
