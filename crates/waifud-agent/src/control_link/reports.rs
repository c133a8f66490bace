//! What waifud has yet to hear, kept until it has: changes together, at most a few times a second. What people wait
//! for (another state, readiness, the end) does not wait for the others. What is too much for one report is said in
//! several.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use waifud_api::agent::{AgentReport, InstanceReport, Tombstone, Unmanaged, bounds};
use waifud_types::evidence::GuestEvidence;
use waifud_types::node::NodeFacts;
use waifud_types::status::InstanceAddress;
use waifud_types::{InstanceId, Timestamp};

/// Bytes of the instances of one report at most, as JSON; one instance is always taken. With the largest list of what is
/// in nobody's list it stays below what waifud reads.
const INSTANCES_BYTES: usize = 512 << 10;

/// The outbox. What is put in replaces what was said of the same thing before.
#[derive(Debug, Default)]
pub struct Reports {
    inner: Mutex<Inner>,
    filled: Notify,
    urgent: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    instances: BTreeMap<InstanceId, InstanceReport>,
    unsaid: BTreeSet<InstanceId>,
    /// Said with the instance's status, and only when it changed.
    evidence: BTreeMap<InstanceId, GuestEvidence>,
    evidence_unsaid: BTreeSet<InstanceId>,
    /// Seen at ports, and said with every status.
    addresses: BTreeMap<InstanceId, Vec<InstanceAddress>>,
    destroyed: BTreeMap<InstanceId, Tombstone>,
    destroyed_unsaid: BTreeSet<InstanceId>,
    facts: Option<NodeFacts>,
    facts_unsaid: bool,
    unmanaged: Option<Vec<Unmanaged>>,
    unmanaged_unsaid: bool,
    /// Things that one report may tell of, while waifud refuses larger ones.
    things_max: Option<usize>,
}

impl Reports {
    /// An instance's status.
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
        inner.unsaid.insert(id);
        self.filled.notify_one();
    }

    /// What a guest was seen to do. Nobody waits for it: it goes with the next round.
    pub fn evidence(&self, id: InstanceId, evidence: GuestEvidence) {
        let mut inner = self.inner();
        if inner.evidence.get(&id) != Some(&evidence) {
            inner.evidence.insert(id, evidence);
            inner.evidence_unsaid.insert(id);
            self.filled.notify_one();
        }
    }

    /// Addresses that were seen at a guest's ports. People wait for these. Returns whether they are others than before.
    pub fn addresses(&self, id: InstanceId, addresses: Vec<InstanceAddress>) -> bool {
        let mut inner = self.inner();
        let before = inner.addresses.get(&id).map_or(&[][..], Vec::as_slice);
        let differ = before != addresses.as_slice();
        if differ {
            inner.addresses.insert(id, addresses);
            inner.unsaid.insert(id);
            self.filled.notify_one();
            self.urgent.notify_one();
        }
        differ
    }

    /// The addresses that were put in last.
    pub fn seen_addresses(&self, id: InstanceId) -> Vec<InstanceAddress> {
        self.inner().addresses.get(&id).cloned().unwrap_or_default()
    }

    /// The evidence that was put in last.
    pub fn last_evidence(&self, id: InstanceId) -> Option<GuestEvidence> {
        self.inner().evidence.get(&id).cloned()
    }

    /// An instance was destroyed; nothing else is said of it any more.
    pub fn destroyed(&self, tombstone: Tombstone) {
        let mut inner = self.inner();
        inner.forget(tombstone.instance);
        inner.destroyed_unsaid.insert(tombstone.instance);
        inner.destroyed.insert(tombstone.instance, tombstone);
        self.urgent.notify_one();
        self.filled.notify_one();
    }

    /// An instance is no longer this node's to speak of.
    pub fn forget(&self, id: InstanceId) {
        self.inner().forget(id);
    }

    /// What the node has.
    pub fn facts(&self, facts: NodeFacts) {
        let mut inner = self.inner();
        if inner.facts.as_ref() != Some(&facts) {
            inner.facts = Some(facts);
            inner.facts_unsaid = true;
            self.filled.notify_one();
        }
    }

    /// What is on the node and in nobody's list.
    pub fn unmanaged(&self, unmanaged: Vec<Unmanaged>) {
        let mut inner = self.inner();
        if inner.unmanaged.as_ref() != Some(&unmanaged) {
            inner.unmanaged = Some(unmanaged);
            inner.unmanaged_unsaid = true;
            self.filled.notify_one();
        }
    }

    /// The facts that were put in last.
    pub fn last_facts(&self) -> Option<NodeFacts> {
        self.inner().facts.clone()
    }

    /// The status that was put in last.
    pub fn last_instance(&self, id: InstanceId) -> Option<InstanceReport> {
        self.inner().instances.get(&id).cloned()
    }

    /// Everything counts as unsaid: another waifud may be listening.
    pub fn say_again(&self) {
        let mut inner = self.inner();
        inner.unsaid = inner.instances.keys().copied().collect();
        inner.evidence_unsaid = inner.evidence.keys().copied().collect();
        inner.destroyed_unsaid = inner.destroyed.keys().copied().collect();
        inner.facts_unsaid = inner.facts.is_some();
        inner.unmanaged_unsaid = inner.unmanaged.is_some();
        self.filled.notify_one();
    }

    /// What was put back is to be said soon.
    pub fn again(&self) {
        self.filled.notify_one();
    }

    /// Returns when something may be unsaid.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Returns when something should not wait for the next round.
    pub async fn urgent(&self) {
        self.urgent.notified().await;
    }

    /// What is unsaid, counted as said from now on; empty when nothing is. As much of it as waifud takes at once: when
    /// something is left, it is to be said soon. Destroyed ones stay until acknowledged.
    pub fn take(&self, now: Timestamp) -> AgentReport {
        let mut guard = self.inner();
        let inner = &mut *guard;
        let mut left = inner.things_max.unwrap_or(usize::MAX);
        let mut may_tell = |unsaid: &mut bool| {
            let told = *unsaid && left > 0;
            left -= usize::from(told);
            *unsaid &= !told;
            told
        };
        let tells_facts = may_tell(&mut inner.facts_unsaid);
        let tells_unmanaged = may_tell(&mut inner.unmanaged_unsaid);
        let destroyed = inner.take_destroyed(left);
        let instances = inner.take_instances(left - destroyed.len());
        let mut report = AgentReport {
            facts: inner.facts.clone().filter(|_| tells_facts),
            now: Some(now),
            instances,
            destroyed,
            unmanaged: inner.unmanaged.clone().filter(|_| tells_unmanaged),
        };
        if inner.has_unsaid() {
            self.filled.notify_one();
        }
        drop(guard);
        report.fit();
        report
    }

    /// waifud does not take this report. Unless it tells of one thing only, it is said again in parts, so that the others
    /// are heard. Says whether it will be.
    pub fn split(&self, report: &AgentReport) -> bool {
        let things = report.instances.len()
            + report.destroyed.len()
            + usize::from(report.facts.is_some())
            + usize::from(report.unmanaged.is_some());
        if things < 2 {
            return false;
        }
        self.put_back(report);
        self.inner().things_max = Some(things / 2);
        self.filled.notify_one();
        true
    }

    /// The report was not heard: what it said is unsaid again.
    pub fn put_back(&self, report: &AgentReport) {
        let mut inner = self.inner();
        for instance in &report.instances {
            if inner.instances.contains_key(&instance.id) {
                inner.unsaid.insert(instance.id);
                if instance.evidence.is_some() {
                    inner.evidence_unsaid.insert(instance.id);
                }
            }
        }
        for tombstone in &report.destroyed {
            if inner.destroyed.contains_key(&tombstone.instance) {
                inner.destroyed_unsaid.insert(tombstone.instance);
            }
        }
        inner.facts_unsaid |= report.facts.is_some();
        inner.unmanaged_unsaid |= report.unmanaged.is_some();
    }

    /// The report was heard. Returns the instances that may be forgotten.
    pub fn heard(&self, report: &AgentReport) -> Vec<InstanceId> {
        let mut inner = self.inner();
        if !inner.has_unsaid() {
            inner.things_max = None;
        }
        let mut done = Vec::new();
        for tombstone in &report.destroyed {
            if inner.destroyed.get(&tombstone.instance) == Some(tombstone) {
                inner.destroyed.remove(&tombstone.instance);
                inner.destroyed_unsaid.remove(&tombstone.instance);
                done.push(tombstone.instance);
            }
        }
        done
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn forget(&mut self, id: InstanceId) {
        self.instances.remove(&id);
        self.unsaid.remove(&id);
        self.evidence.remove(&id);
        self.evidence_unsaid.remove(&id);
        self.addresses.remove(&id);
    }

    /// Whether anything waits to be said. What was seen of an instance without a status waits for that.
    fn has_unsaid(&self) -> bool {
        let known = |id: &InstanceId| self.instances.contains_key(id);
        self.facts_unsaid
            || self.unmanaged_unsaid
            || !self.destroyed_unsaid.is_empty()
            || self.unsaid.iter().any(known)
            || self.evidence_unsaid.iter().any(known)
    }

    /// At most so many unsaid ones, counted as said.
    fn take_destroyed(&mut self, most: usize) -> Vec<Tombstone> {
        let mut taken = Vec::new();
        while taken.len() < most.min(bounds::DESTROYED_MAX) {
            let Some(id) = self.destroyed_unsaid.pop_first() else {
                break;
            };
            taken.extend(self.destroyed.get(&id).cloned());
        }
        taken
    }

    /// At most so many unsaid ones, counted as said, and as many as fit into a report. What was seen of an instance
    /// without a status waits for that.
    fn take_instances(&mut self, most: usize) -> Vec<InstanceReport> {
        let unsaid = self.unsaid.union(&self.evidence_unsaid);
        let known = unsaid.filter(|id| self.instances.contains_key(id));
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
                evidence: seen.filter(|_| self.evidence_unsaid.contains(&id)).cloned(),
                addresses: self.addresses.get(&id).cloned().unwrap_or_default(),
                ..report.clone()
            };
            bytes = bytes.saturating_add(size(&report));
            if bytes > INSTANCES_BYTES && !taken.is_empty() {
                break;
            }
            taken.push(report);
            self.unsaid.remove(&id);
            self.evidence_unsaid.remove(&id);
        }
        taken
    }
}

/// Bytes of it as JSON.
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use waifud_types::{Epoch, Generation, InstanceState};

    use super::*;

    fn report(state: InstanceState, reason: &str) -> InstanceReport {
        InstanceReport {
            id: "00000000-0000-7000-8000-000000000001".parse().unwrap(),
            epoch: Epoch::FIRST,
            observed_generation: Generation::FIRST,
            state,
            reason: Some(reason.to_owned()),
            started_at: None,
            stopped_by: None,
            hypervisor: None,
            ready: false,
            ready_by: None,
            addresses: Vec::new(),
            step: None,
            restart_needed: Vec::new(),
            cloud_init: waifud_types::status::CloudInitStatus::default(),
            conditions: Vec::new(),
            evidence: None,
        }
    }

    fn urgent(reports: &Reports) -> bool {
        reports.urgent().now_or_never().is_some()
    }

    #[test]
    fn another_state_is_urgent_and_progress_is_not() {
        let reports = Reports::default();
        reports.instance(report(InstanceState::Preparing, "10 %"));
        assert!(urgent(&reports));
        reports.instance(report(InstanceState::Preparing, "20 %"));
        assert!(!urgent(&reports));
        reports.instance(report(InstanceState::Running, "20 %"));
        assert!(urgent(&reports));
    }

    #[test]
    fn addresses_are_said_with_every_status_and_are_urgent_when_new() {
        let reports = Reports::default();
        let status = report(InstanceState::Running, "");
        let id = status.id;
        reports.instance(status);
        reports.take(Timestamp::UNIX_EPOCH);
        let seen = vec![InstanceAddress {
            address: [192, 168, 1, 40].into(),
            family: waifud_types::status::AddressFamily::Ipv4,
            network: "lan".parse().unwrap(),
            source: waifud_types::status::AddressSource::Observed,
            primary: true,
        }];
        let said = |reports: &Reports| {
            let taken = reports.take(Timestamp::UNIX_EPOCH).instances;
            taken.into_iter().map(|i| i.addresses).next()
        };
        assert!(urgent(&reports));
        reports.addresses(id, seen.clone());
        assert!(urgent(&reports));
        assert_eq!(said(&reports), Some(seen.clone()));
        reports.addresses(id, seen.clone());
        assert_eq!(said(&reports), None);
        reports.instance(report(InstanceState::Running, "other"));
        assert_eq!(said(&reports), Some(seen));
        reports.addresses(id, Vec::new());
        assert_eq!(said(&reports), Some(Vec::new()));
    }

    #[test]
    fn evidence_is_said_with_the_status_and_only_when_it_changed() {
        let reports = Reports::default();
        let status = report(InstanceState::Running, "");
        let id = status.id;
        let now = Timestamp::UNIX_EPOCH;
        let seen = GuestEvidence {
            console: vec!["login:".to_owned()],
            ..GuestEvidence::default()
        };
        reports.evidence(id, seen.clone());
        assert!(reports.take(now).instances.is_empty(), "no status yet");
        reports.instance(status.clone());
        assert!(urgent(&reports));
        let first = reports.take(now);
        assert_eq!(first.instances[0].evidence, Some(seen.clone()));

        reports.evidence(id, seen.clone());
        reports.instance(status);
        assert!(reports.take(now).instances.is_empty(), "nothing changed");
        reports.instance(report(InstanceState::Running, "other"));
        assert_eq!(reports.take(now).instances[0].evidence, None);

        reports.put_back(&first);
        assert_eq!(reports.take(now).instances[0].evidence, Some(seen.clone()));
        reports.say_again();
        assert_eq!(reports.take(now).instances[0].evidence, Some(seen));
        reports.evidence(id, GuestEvidence::default());
        assert!(!urgent(&reports), "nobody waits for evidence");
        reports.forget(id);
        assert!(reports.take(now).instances.is_empty());
    }

    fn id(number: u128) -> InstanceId {
        format!("00000000-0000-7000-8000-{number:012x}")
            .parse()
            .unwrap()
    }

    fn numbered(number: u128, reason: &str) -> InstanceReport {
        InstanceReport {
            id: id(number),
            ..report(InstanceState::Running, reason)
        }
    }

    fn tombstone(number: u128) -> Tombstone {
        Tombstone {
            instance: id(number),
            name: "web".parse().unwrap(),
            epoch: Epoch::FIRST,
        }
    }

    fn is_filled(reports: &Reports) -> bool {
        reports.filled().now_or_never().is_some()
    }

    #[test]
    fn what_is_too_much_for_one_report_is_said_in_several_and_nothing_is_lost() {
        let reports = Reports::default();
        for number in 0..3000 {
            reports.instance(numbered(number, &"\u{1b}[2Jlong ".repeat(1000)));
            reports.destroyed(tombstone(10_000 + number));
        }
        let (mut said, mut gone) = (BTreeSet::new(), 0);
        while is_filled(&reports) {
            let mut part = reports.take(Timestamp::UNIX_EPOCH);
            part.check().unwrap();
            assert!(serde_json::to_vec(&part).unwrap().len() < 1 << 20);
            said.extend(part.instances.iter().map(|said| said.id));
            gone += reports.heard(&part).len();
        }
        assert_eq!((said.len(), gone), (3000, 3000));
    }

    #[test]
    fn a_report_that_is_refused_is_halved_until_one_thing_is_left_alone() {
        let reports = Reports::default();
        for number in 0..100 {
            reports.instance(numbered(number, ""));
        }
        reports.destroyed(tombstone(1000));
        let (mut heard, mut dropped) = (BTreeSet::new(), 0);
        while is_filled(&reports) {
            let part = reports.take(Timestamp::UNIX_EPOCH);
            if part.instances.iter().any(|said| said.id == id(77)) {
                dropped += usize::from(!reports.split(&part));
                continue;
            }
            heard.extend(part.instances.iter().map(|said| said.id));
            reports.heard(&part);
        }
        assert_eq!((heard.len(), dropped), (99, 1));
        assert!(!heard.contains(&id(77)));
        reports.say_again();
        let again = reports.take(Timestamp::UNIX_EPOCH);
        assert!(again.destroyed.is_empty(), "it was heard");
    }
}
