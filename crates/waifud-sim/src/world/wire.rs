//! The wire between a node and waifud: it can be cut in each direction, and messages take time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use waifud_kit::sync::lock;

use crate::random::Random;

/// How long a message waits at a cut before it is lost: the kernel sends it again meanwhile, also when the sender has given
/// up.
const LOST_AFTER: Duration = Duration::from_mins(1);

/// The directions in which nothing passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cuts {
    /// From the node to waifud.
    pub to_waifud: bool,
    /// From waifud to the node.
    pub to_node: bool,
}

impl Cuts {
    /// Whether anything is cut.
    pub fn any(self) -> bool {
        self.to_waifud || self.to_node
    }
}

/// A direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// From the node to waifud.
    Waifud,
    /// From waifud to the node.
    Node,
}

/// The wire of one node.
pub struct Wire {
    cuts: watch::Sender<Cuts>,
    /// Messages are fast and arrive once.
    calm: AtomicBool,
    random: Random,
    /// Messages on their way. They arrive whether or not their sender still waits for an answer.
    under_way: Mutex<JoinSet<()>>,
}

impl Wire {
    pub(super) fn new(random: Random) -> Self {
        Self {
            cuts: watch::Sender::new(Cuts::default()),
            calm: AtomicBool::new(true),
            random,
            under_way: Mutex::default(),
        }
    }

    /// The present cuts.
    pub fn cuts(&self) -> Cuts {
        *self.cuts.borrow()
    }

    /// Cuts and heals.
    pub fn set_cuts(&self, cuts: Cuts) {
        self.cuts.send_replace(cuts);
    }

    /// Sets whether messages are fast and arrive once.
    pub fn set_calm(&self, calm: bool) {
        self.calm.store(calm, Ordering::SeqCst);
    }

    /// How long the next message takes.
    pub(super) fn delay(&self) -> Duration {
        let calm = self.calm.load(Ordering::SeqCst);
        let most = match self.random.below(20) {
            0 if !calm => 20_000,
            1..=3 if !calm => 1000,
            _ => 20,
        };
        Duration::from_millis(self.random.below(most))
    }

    /// Whether and when a message arrives a second time.
    pub(super) fn repetition(&self) -> Option<Duration> {
        let repeats = !self.calm.load(Ordering::SeqCst) && self.random.percent(10);
        repeats.then(|| Duration::from_millis(self.random.below(30_000)))
    }

    /// Waits until a message passes; false if it is lost.
    pub(super) async fn passes(&self, to: To) -> bool {
        let mut cuts = self.cuts.subscribe();
        let open = cuts.wait_for(|cuts| match to {
            To::Waifud => !cuts.to_waifud,
            To::Node => !cuts.to_node,
        });
        matches!(timeout(LOST_AFTER, open).await, Ok(Ok(_)))
    }

    /// Returns once messages to the node pass.
    pub(super) async fn open_to_node(&self) {
        let mut cuts = self.cuts.subscribe();
        // The sender lives as long as this wire.
        let _open = cuts.wait_for(|cuts| !cuts.to_node).await;
    }

    pub(super) fn carry(&self, message: impl Future<Output = ()> + Send + 'static) {
        let mut all = lock(&self.under_way);
        while all.try_join_next().is_some() {}
        all.spawn(message);
    }

    /// The node has lost its power, and what it was sending is lost with it.
    pub(super) fn lose_all(&self) {
        lock(&self.under_way).abort_all();
    }
}
