//! The names of other nodes' instances in a watch: when to send them.
//!
//! Every node gets the names of all others, so the work grows with the number of nodes times the number of names, and many
//! changes at once must not take the time of other requests. A watch therefore collects changes, sends a limited number of
//! names at a time, and pauses afterwards in proportion to what all watches together send. With a few nodes a name arrives
//! within a second; with a thousand nodes on which many instances are created at once, it takes minutes.

use std::future::pending;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use waifud_store::NodesNames;
use waifud_types::Revision;

/// How long changes are collected at least.
pub(super) const COLLECT: Duration = Duration::from_millis(500);
/// How much longer for each node of the cluster.
const COLLECT_PER_NODE: Duration = Duration::from_millis(2);
/// How many names are sent at a time. The names of one node are never divided.
pub(super) const NAMES_AT_ONCE: usize = 500;
/// How many names all watches together send in a second, about.
const NAMES_PER_SECOND: u64 = 200_000;

/// The names that a watch has sent, and when it sends further ones.
#[derive(Debug)]
pub(super) struct NamesWatch {
    /// The revision of the newest names that were sent.
    pub(super) since: u64,
    changes: watch::Receiver<u64>,
    /// When to send changes.
    due: Option<Instant>,
    /// When the pause ends.
    next: Instant,
    /// How many nodes the cluster has.
    nodes: u64,
}

impl NamesWatch {
    /// Begins after the names that the node has stored. All names are sent if these are from another incarnation.
    pub(super) fn new(
        stored: Option<Revision>,
        now: Revision,
        changes: watch::Receiver<u64>,
    ) -> Self {
        let stored = stored.filter(|stored| stored.incarnation == now.incarnation);
        let begun = Instant::now();
        Self {
            since: stored.map_or(0, |stored| stored.number),
            changes,
            due: Some(begun),
            next: begun,
            nodes: 1,
        }
    }

    /// Returns when names are due to be read. Cancel-safe.
    pub(super) async fn due(&mut self) {
        loop {
            if let Some(due) = self.due {
                return sleep_until(due).await;
            }
            if self.changes.changed().await.is_err() {
                // waifud stops.
                return pending().await;
            }
            self.due = Some(self.next.max(Instant::now() + collect(self.nodes)));
        }
    }

    /// To be called before the names are read, so that a change during that is not missed.
    pub(super) fn begin(&mut self) {
        self.changes.mark_unchanged();
    }

    /// Records what was read.
    pub(super) fn sent(&mut self, names: &NodesNames, nodes: u64) {
        if let Some(last) = names.nodes.last() {
            self.since = last.revision.number;
        }
        self.nodes = nodes;
        self.next = Instant::now() + pause(names.count, nodes);
        self.due = names.more.then_some(self.next);
    }
}

/// How long changes are collected.
fn collect(nodes: u64) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    COLLECT.max(COLLECT_PER_NODE.saturating_mul(nodes))
}

/// The pause after so many names, if the watches of all nodes send as many.
fn pause(names: usize, nodes: u64) -> Duration {
    let names = u64::try_from(names).unwrap_or(u64::MAX);
    let micros = names.saturating_mul(nodes).saturating_mul(1_000_000) / NAMES_PER_SECOND;
    Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_collected_longer_in_large_clusters() {
        let millis = |nodes| collect(nodes).as_millis();
        assert_eq!([3, 250, 1000].map(millis), [500, 500, 2000]);
    }

    #[test]
    fn the_pause_grows_with_the_names_of_all_watches() {
        let millis = |(names, nodes)| pause(names, nodes).as_millis();
        let cases = [(20, 3), (500, 3), (50, 1000), (500, 1000)];
        assert_eq!(cases.map(millis), [0, 7, 250, 2500]);
    }

    #[tokio::test]
    async fn further_names_are_due_after_the_pause_and_changes_once_they_are_collected() {
        let changes = watch::Sender::new(0);
        let now: Revision = "000000ab.1".parse().unwrap();
        let mut watch = NamesWatch::new(None, now, changes.subscribe());
        let begun = watch.next;
        assert_eq!(watch.due, Some(begun), "the first names are due at once");
        let read = |more| NodesNames {
            count: 500,
            more,
            ..NodesNames::default()
        };
        watch.sent(&read(true), 1000);
        assert_eq!(watch.due, Some(watch.next));
        assert!(watch.next >= begun + pause(500, 1000));
        watch.sent(&read(false), 1000);
        assert_eq!(watch.due, None);
    }

    #[test]
    fn names_of_another_incarnation_do_not_count() {
        let changes = watch::Sender::new(0);
        let revision = |text: &str| text.parse::<Revision>().unwrap();
        for (stored, since) in [("000000ab.7", 7), ("000000ac.7", 0)] {
            let stored = Some(revision(stored));
            let watch = NamesWatch::new(stored, revision("000000ab.1"), changes.subscribe());
            assert_eq!(watch.since, since);
        }
    }
}
