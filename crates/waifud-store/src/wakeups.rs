//! Notifications after a commit: for callers that wait for any event, and for those that wait for one object.
//!
//! A notification contains only the newest revision. The receiver reads the database, so nothing is lost if
//! notifications are merged, and a slow receiver costs nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;
use waifud_types::{InstanceId, NodeId};

/// An object that callers can wait for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Topic {
    /// The slice of a node: its instances and tombstones.
    Node(NodeId),
    /// One instance: its spec or its status.
    Instance(InstanceId),
    /// The objects that every node's slice has: peers.
    Cluster,
    /// The names, addresses and labels of instances. Woken with every [`Topic::Node`], because most changes of a slice are one of
    /// these.
    Names,
}

/// The listeners.
#[derive(Debug)]
pub(crate) struct Wakeups {
    newest: watch::Sender<u64>,
    commits: AtomicU64,
    topics: Mutex<HashMap<Topic, watch::Sender<u64>>>,
}

impl Wakeups {
    pub(crate) fn new(newest: u64) -> Self {
        Self {
            newest: watch::Sender::new(newest),
            commits: AtomicU64::new(0),
            topics: Mutex::default(),
        }
    }

    pub(crate) fn newest(&self) -> u64 {
        *self.newest.borrow()
    }

    /// The number of commits since the database was opened.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::SeqCst)
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    pub(crate) fn subscribe_topic(&self, topic: Topic) -> watch::Receiver<u64> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topics
            .entry(topic)
            .or_insert_with(|| watch::Sender::new(0))
            .subscribe()
    }

    /// Counts a commit, publishes the newest revision, and wakes callers that wait for events.
    pub(crate) fn grown(&self, newest: u64) {
        self.commits.fetch_add(1, Ordering::SeqCst);
        self.newest.send_if_modified(|seen| {
            let grew = newest > *seen;
            *seen = (*seen).max(newest);
            grew
        });
    }

    /// Wakes the topics' listeners.
    pub(crate) fn touched(&self, newest: u64, touched: &[Topic]) {
        if touched.is_empty() {
            return;
        }
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let slices = touched.iter().any(|topic| matches!(topic, Topic::Node(_)));
        for topic in touched.iter().chain(slices.then_some(&Topic::Names)) {
            if let Some(sender) = topics.get(topic) {
                if sender.receiver_count() == 0 {
                    topics.remove(topic);
                } else {
                    sender.send_replace(newest);
                }
            }
        }
        // Topics without listeners are removed here once there are many, even if they are not committed to again.
        if topics.len() > 1024 {
            topics.retain(|_, sender| sender.receiver_count() > 0);
        }
    }
}
