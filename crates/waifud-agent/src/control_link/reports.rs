//! The outbox: reports that waifud has not acknowledged yet. Changes are sent together, at most a few times a second.
//! Changes that users wait for (a new state, readiness, a completed deletion) are sent at once. What does not fit into one
//! report is sent in several.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use tokio::sync::{Notify, watch};
use waifud_api::agent::{
    AgentReport, InstanceReport, Receiving, Released, Tombstone, Unmanaged, bounds,
};
use waifud_kit::sync::lock;
use waifud_types::evidence::GuestEvidence;
use waifud_types::node::NodeFacts;
use waifud_types::status::InstanceAddress;
use waifud_types::{BootId, InstanceId, Timestamp};

use super::order::MessageCounter;

/// The largest size of the instances of one report, in bytes of JSON; one instance is always taken. Together with the
/// largest list of unmanaged objects, the report stays below waifud's limit.
const INSTANCES_BYTES: usize = 512 << 10;

/// The outbox. A new entry replaces the previous one about the same object.
#[derive(Debug, Default)]
pub struct Reports {
    inner: Mutex<Inner>,
    has_work: Notify,
    urgent: Notify,
    /// Whether waifud has welcomed this process, so that reports may be sent.
    connected: watch::Sender<bool>,
    /// The order of reports and hellos.
    pub order: MessageCounter,
    /// The boot id in the last hello.
    boot: Mutex<Option<BootId>>,
}

#[derive(Debug, Default)]
struct Inner {
    instances: BTreeMap<InstanceId, InstanceReport>,
    pending_instances: BTreeSet<InstanceId>,
    /// Sent with the instance's status, and only when it changed.
    evidence: BTreeMap<InstanceId, GuestEvidence>,
    evidence_pending: BTreeSet<InstanceId>,
    /// Observed at ports, and sent with every status.
    addresses: BTreeMap<InstanceId, Vec<InstanceAddress>>,
    destroyed: BTreeMap<InstanceId, Tombstone>,
    destroyed_pending: BTreeSet<InstanceId>,
    /// Recorded releases. They stay until the instance comes back or is destroyed, and are sent once in each connection.
    released: BTreeMap<InstanceId, Released>,
    released_pending: BTreeSet<InstanceId>,
    /// Instances that the node receives. They stay until the node owns the instance or has deleted it.
    receiving: BTreeMap<InstanceId, Receiving>,
    receiving_pending: BTreeSet<InstanceId>,
    facts: Option<NodeFacts>,
    facts_pending: bool,
    unmanaged: Option<Vec<Unmanaged>>,
    unmanaged_pending: bool,
    /// How many items one report may contain, while waifud refuses larger reports.
    max_items: Option<usize>,
}

impl Reports {
    /// The boot id in this and later reports.
    pub fn set_boot(&self, boot: Option<BootId>) {
        *lock(&self.boot) = boot;
    }

    pub fn instance(&self, report: InstanceReport) {
        let mut inner = self.inner();
        let id = report.id;
        let before = inner.instances.get(&id);
        if before == Some(&report) {
            return;
        }
        if before.is_none_or(|b| b.state != report.state || b.ready != report.ready) {
            self.urgent.notify_one();
        }
        inner.instances.insert(id, report);
        inner.pending_instances.insert(id);
        self.has_work.notify_one();
    }

    /// What was observed of a guest. It is not urgent, and is sent with the next report.
    pub fn evidence(&self, id: InstanceId, evidence: GuestEvidence) {
        let mut inner = self.inner();
        if inner.evidence.get(&id) != Some(&evidence) {
            inner.evidence.insert(id, evidence);
            inner.evidence_pending.insert(id);
            self.has_work.notify_one();
        }
    }

    /// Addresses observed at a guest's ports. Users wait for these. Returns whether they changed.
    pub fn addresses(&self, id: InstanceId, addresses: Vec<InstanceAddress>) -> bool {
        let mut inner = self.inner();
        let before = inner.addresses.get(&id).map_or(&[][..], Vec::as_slice);
        let differ = before != addresses.as_slice();
        if differ {
            inner.addresses.insert(id, addresses);
            inner.pending_instances.insert(id);
            self.has_work.notify_one();
            self.urgent.notify_one();
        }
        differ
    }

    /// The current addresses.
    pub fn seen_addresses(&self, id: InstanceId) -> Vec<InstanceAddress> {
        self.inner().addresses.get(&id).cloned().unwrap_or_default()
    }

    /// The current evidence.
    pub fn last_evidence(&self, id: InstanceId) -> Option<GuestEvidence> {
        self.inner().evidence.get(&id).cloned()
    }

    /// An instance was destroyed. Nothing else is reported about it afterwards.
    pub fn destroyed(&self, tombstone: Tombstone) {
        let mut inner = self.inner();
        inner.forget(tombstone.instance);
        inner.destroyed_pending.insert(tombstone.instance);
        inner.destroyed.insert(tombstone.instance, tombstone);
        self.urgent.notify_one();
        self.has_work.notify_one();
    }

    /// The recorded release of an instance; `None` if there is none.
    pub fn released(&self, id: InstanceId, released: Option<Released>) {
        let mut inner = self.inner();
        let Some(released) = released else {
            inner.released.remove(&id);
            inner.released_pending.remove(&id);
            return;
        };
        if inner.released.insert(id, released) != Some(released) {
            inner.released_pending.insert(id);
            self.urgent.notify_one();
            self.has_work.notify_one();
        }
    }

    /// How far the node is with an instance that it receives; `None` if it receives none. A new state is urgent, progress is
    /// not.
    pub fn receiving(&self, id: InstanceId, receiving: Option<Receiving>) {
        let mut inner = self.inner();
        let Some(receiving) = receiving else {
            inner.receiving.remove(&id);
            inner.receiving_pending.remove(&id);
            return;
        };
        let before = inner.receiving.get(&id);
        if before == Some(&receiving) {
            return;
        }
        if before.is_none_or(|before| before.state != receiving.state) {
            self.urgent.notify_one();
        }
        inner.receiving.insert(id, receiving);
        inner.receiving_pending.insert(id);
        self.has_work.notify_one();
    }

    /// This node does not report about the instance any more.
    pub fn forget(&self, id: InstanceId) {
        self.inner().forget(id);
    }

    pub fn facts(&self, facts: NodeFacts) {
        let mut inner = self.inner();
        if inner.facts.as_ref() != Some(&facts) {
            inner.facts = Some(facts);
            inner.facts_pending = true;
            self.has_work.notify_one();
        }
    }

    pub fn unmanaged(&self, unmanaged: Vec<Unmanaged>) {
        let mut inner = self.inner();
        if inner.unmanaged.as_ref() != Some(&unmanaged) {
            inner.unmanaged = Some(unmanaged);
            inner.unmanaged_pending = true;
            self.has_work.notify_one();
        }
    }

    /// The list of unmanaged objects is out of date, and not sent again.
    pub fn forget_unmanaged(&self) {
        let mut inner = self.inner();
        inner.unmanaged = None;
        inner.unmanaged_pending = false;
    }

    /// The current facts.
    pub fn last_facts(&self) -> Option<NodeFacts> {
        self.inner().facts.clone()
    }

    /// The current status.
    pub fn last_instance(&self, id: InstanceId) -> Option<InstanceReport> {
        self.inner().instances.get(&id).cloned()
    }

    /// Sends everything again: waifud may have been restarted or restored.
    pub fn resend_all(&self) {
        let mut inner = self.inner();
        inner.pending_instances = inner.instances.keys().copied().collect();
        inner.evidence_pending = inner.evidence.keys().copied().collect();
        inner.destroyed_pending = inner.destroyed.keys().copied().collect();
        inner.released_pending = inner.released.keys().copied().collect();
        inner.receiving_pending = inner.receiving.keys().copied().collect();
        inner.facts_pending = inner.facts.is_some();
        inner.unmanaged_pending = inner.unmanaged.is_some();
        self.has_work.notify_one();
    }

    /// Reports are sent only while waifud knows this process.
    pub fn set_connected(&self, connected: bool) {
        self.connected.send_replace(connected);
    }

    /// Returns once reports may be sent.
    pub async fn connected(&self) {
        let mut changes = self.connected.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _connected = changes.wait_for(|connected| *connected).await;
    }

    /// Schedules the requeued entries to be sent soon.
    pub fn notify_pending(&self) {
        self.has_work.notify_one();
    }

    /// Returns when there may be something to send.
    pub async fn pending(&self) {
        self.has_work.notified().await;
    }

    /// Returns when something should be sent at once.
    pub async fn urgent(&self) {
        self.urgent.notified().await;
    }

    /// Takes what is pending, as much as fits into one report; the report may be empty. If something is left, another
    /// report is due soon. Destroyed instances are kept until acknowledged.
    pub fn take(&self, now: Timestamp) -> AgentReport {
        let mut guard = self.inner();
        let inner = &mut *guard;
        let mut left = inner.max_items.unwrap_or(usize::MAX);
        let mut take_flag = |pending: &mut bool| {
            let taken = *pending && left > 0;
            left -= usize::from(taken);
            *pending &= !taken;
            taken
        };
        let with_facts = take_flag(&mut inner.facts_pending);
        let with_unmanaged = take_flag(&mut inner.unmanaged_pending);
        let most = left.min(bounds::DESTROYED_MAX);
        let destroyed = take_pending(&mut inner.destroyed_pending, &inner.destroyed, most);
        left -= destroyed.len();
        let most = left.min(bounds::RELEASED_MAX);
        let released = take_pending(&mut inner.released_pending, &inner.released, most);
        left -= released.len();
        let most = left.min(bounds::RECEIVING_MAX);
        let receiving = take_pending(&mut inner.receiving_pending, &inner.receiving, most);
        let instances = inner.take_instances(left - receiving.len());
        let mut report = AgentReport {
            facts: inner.facts.clone().filter(|_| with_facts),
            now: Some(now),
            instances,
            destroyed,
            released,
            receiving,
            unmanaged: inner.unmanaged.clone().filter(|_| with_unmanaged),
            order: Some(self.order.next()),
            boot_id: *lock(&self.boot),
        };
        if inner.has_pending() {
            self.has_work.notify_one();
        }
        drop(guard);
        report.fit();
        report
    }

    /// waifud refused this report. Unless it contains a single item, its items are sent again in smaller reports, so that
    /// waifud accepts the others. Returns whether that will happen.
    pub fn split(&self, report: &AgentReport) -> bool {
        let items = report.instances.len()
            + report.destroyed.len()
            + report.released.len()
            + report.receiving.len()
            + usize::from(report.facts.is_some())
            + usize::from(report.unmanaged.is_some());
        if items < 2 {
            return false;
        }
        self.requeue(report);
        self.inner().max_items = Some(items / 2);
        self.has_work.notify_one();
        true
    }

    /// The report was not delivered: its entries are pending again.
    pub fn requeue(&self, report: &AgentReport) {
        let mut inner = self.inner();
        for instance in &report.instances {
            if inner.instances.contains_key(&instance.id) {
                inner.pending_instances.insert(instance.id);
                if instance.evidence.is_some() {
                    inner.evidence_pending.insert(instance.id);
                }
            }
        }
        for tombstone in &report.destroyed {
            if inner.destroyed.contains_key(&tombstone.instance) {
                inner.destroyed_pending.insert(tombstone.instance);
            }
        }
        for released in &report.released {
            if inner.released.contains_key(&released.instance) {
                inner.released_pending.insert(released.instance);
            }
        }
        for receiving in &report.receiving {
            if inner.receiving.contains_key(&receiving.instance) {
                inner.receiving_pending.insert(receiving.instance);
            }
        }
        inner.facts_pending |= report.facts.is_some();
        inner.unmanaged_pending |= report.unmanaged.is_some();
    }

    /// waifud accepted the report. Returns the destroyed instances whose records may be removed.
    pub fn acknowledge(&self, report: &AgentReport) -> Vec<InstanceId> {
        let mut inner = self.inner();
        if !inner.has_pending() {
            inner.max_items = None;
        }
        let mut done = Vec::new();
        for tombstone in &report.destroyed {
            if inner.destroyed.get(&tombstone.instance) == Some(tombstone) {
                inner.destroyed.remove(&tombstone.instance);
                inner.destroyed_pending.remove(&tombstone.instance);
                done.push(tombstone.instance);
            }
        }
        done
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Inner {
    fn forget(&mut self, id: InstanceId) {
        self.instances.remove(&id);
        self.pending_instances.remove(&id);
        self.evidence.remove(&id);
        self.evidence_pending.remove(&id);
        self.addresses.remove(&id);
        self.released.remove(&id);
        self.released_pending.remove(&id);
        self.receiving.remove(&id);
        self.receiving_pending.remove(&id);
    }

    /// Whether anything can be sent. Evidence and addresses of an instance wait for its first status.
    fn has_pending(&self) -> bool {
        let known = |id: &InstanceId| self.instances.contains_key(id);
        self.facts_pending
            || self.unmanaged_pending
            || !self.destroyed_pending.is_empty()
            || !self.released_pending.is_empty()
            || !self.receiving_pending.is_empty()
            || self.pending_instances.iter().any(known)
            || self.evidence_pending.iter().any(known)
    }

    /// Takes at most `most` pending instances, and only as many as fit into a report.
    fn take_instances(&mut self, most: usize) -> Vec<InstanceReport> {
        let pending_instances = self.pending_instances.union(&self.evidence_pending);
        let known = pending_instances.filter(|id| self.instances.contains_key(id));
        let most = most.min(bounds::INSTANCES_MAX);
        let ids: Vec<_> = known.copied().take(most).collect();
        let mut taken = Vec::with_capacity(ids.len());
        let mut bytes = 0_usize;
        for id in ids {
            let Some(report) = self.instances.get(&id) else {
                continue;
            };
            let seen = self.evidence.get(&id);
            let report = InstanceReport {
                evidence: seen
                    .filter(|_| self.evidence_pending.contains(&id))
                    .cloned(),
                addresses: self.addresses.get(&id).cloned().unwrap_or_default(),
                ..report.clone()
            };
            bytes = bytes.saturating_add(size(&report));
            if bytes > INSTANCES_BYTES && !taken.is_empty() {
                break;
            }
            taken.push(report);
            self.pending_instances.remove(&id);
            self.evidence_pending.remove(&id);
        }
        taken
    }
}

/// The report's size in bytes of JSON.
fn size(report: &InstanceReport) -> usize {
    struct Counter(usize);
    impl std::io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    match serde_json::to_writer(&mut counter, report) {
        Ok(()) => counter.0,
        Err(_) => usize::MAX,
    }
}

/// Takes at most `most` pending entries.
fn take_pending<T: Clone>(
    pending: &mut BTreeSet<InstanceId>,
    entries: &BTreeMap<InstanceId, T>,
    most: usize,
) -> Vec<T> {
    let mut taken = Vec::new();
    while taken.len() < most
        && let Some(id) = pending.pop_first()
    {
        taken.extend(entries.get(&id).cloned());
    }
    taken
}

#[cfg(test)]
mod tests;
