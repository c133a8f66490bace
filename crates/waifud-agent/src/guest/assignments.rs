//! The bundles and addresses that metadatad has confirmed for each instance.
//!
//! metadatad may process a request whose answer is not awaited any more, because the desired state changed or the answer
//! came too late. Therefore each request runs in its own task, the next request for the same instance is sent after
//! it has ended, and nothing is assumed between sending a request and its confirmation. In particular, an instance
//! counts as possibly held until metadatad has confirmed its release.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::task::JoinSet;
use waifud_api::metadatad::{Assignment, Held};
use waifud_kit::planted_bugs::Bug;
use waifud_kit::sync::lock;
use waifud_types::{Digest, InstanceId, Timestamp};

use crate::failpoints;
use crate::interfaces::{Clock, MetadataError, MetadataService};

/// The number of locks that order requests. Instances that share a lock wait for each other, which costs little.
const REQUEST_LOCKS: usize = 64;

/// The address and the bundle of an assignment.
pub(crate) type Served = (Ipv4Addr, Digest);

/// The assignments; see the module documentation.
pub(crate) struct Assignments {
    service: Arc<dyn MetadataService>,
    clock: Arc<dyn Clock>,
    known: Arc<Mutex<Known>>,
    turns: Vec<Arc<tokio::sync::Mutex<()>>>,
    /// Running requests. They end with this process at the latest.
    requests: Mutex<JoinSet<()>>,
}

/// Each change is applied at once: a panic elsewhere cannot leave it half done.
#[derive(Debug, Default)]
struct Known {
    /// Confirmed assignments.
    held: BTreeMap<InstanceId, Served>,
    /// Since when the bundle is held, at least.
    held_since: BTreeMap<InstanceId, (Digest, Timestamp)>,
    /// Confirmed releases.
    released: BTreeSet<InstanceId>,
    /// Counts starts and ends of requests, to decide whether a list is older than a request.
    clock: u64,
    /// When a request about the instance was last begun or ended.
    touched: BTreeMap<InstanceId, u64>,
    under_way: BTreeSet<InstanceId>,
}

/// A lower bound for when a list of assignments was requested.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(u64);

impl Assignments {
    pub fn new(service: Arc<dyn MetadataService>, clock: Arc<dyn Clock>) -> Self {
        Self {
            service,
            clock,
            known: Arc::default(),
            turns: (0..REQUEST_LOCKS).map(|_| Arc::default()).collect(),
            requests: Mutex::default(),
        }
    }

    /// The confirmed assignment of the instance.
    pub fn of(&self, id: InstanceId) -> Option<Served> {
        self.known().held.get(&id).copied()
    }

    /// Whether metadatad may hold anything of the instance. True until a release is confirmed.
    pub fn may_hold(&self, id: InstanceId) -> bool {
        !self.known().released.contains(&id)
    }

    /// The instances with a confirmed assignment.
    pub fn held(&self) -> Vec<InstanceId> {
        self.known().held.keys().copied().collect()
    }

    /// Whether any confirmed assignment has the bundle.
    pub fn uses(&self, bundle: Digest) -> bool {
        self.known().held.values().any(|(_, held)| *held == bundle)
    }

    /// The bundle of the confirmed assignment, and since when it is held, at least.
    pub fn since(&self, id: InstanceId) -> Option<(Digest, Timestamp)> {
        self.known().held_since.get(&id).copied()
    }

    /// Makes metadatad serve the instance's documents. Dropping the future after its first poll does not cancel the request.
    pub async fn assign(
        &self,
        id: InstanceId,
        assignment: Assignment,
    ) -> Result<(), MetadataError> {
        let service = self.service.clone();
        let served = (assignment.address, assignment.bundle.digest);
        let send = async move {
            failpoints::ASSIGN
                .around(service.assign(id, &assignment))
                .await
        };
        self.request(id, || true, Some(served), send).await
    }

    /// Makes metadatad release everything of the instance, if `still` returns true once the request can be sent.
    pub async fn release(
        &self,
        id: InstanceId,
        still: impl FnOnce() -> bool,
    ) -> Result<(), MetadataError> {
        if Bug::DocumentsLeftBehind.is_planted() {
            self.known().end(id, Confirmed::Released, self.clock.now());
            return Ok(());
        }
        let service = self.service.clone();
        let send = async move { failpoints::RELEASE.around(service.release(id)).await };
        self.request(id, still, None, send).await
    }

    async fn request(
        &self,
        id: InstanceId,
        still: impl FnOnce() -> bool,
        becomes: Option<Served>,
        send: impl Future<Output = Result<(), MetadataError>> + Send + 'static,
    ) -> Result<(), MetadataError> {
        let turn = usize::from(id.as_uuid().as_bytes()[15]) % REQUEST_LOCKS;
        let turn = self.turns[turn].clone().lock_owned().await;
        if !still() {
            return Ok(());
        }
        let known = self.known.clone();
        let clock = self.clock.clone();
        let (answer, answered) = tokio::sync::oneshot::channel();
        lock(&known).begin(id);
        self.spawn(async move {
            let outcome = send.await;
            let confirmed = match (&outcome, becomes) {
                (Err(_), _) => Confirmed::Nothing,
                (Ok(()), Some(served)) => Confirmed::Serves(served),
                (Ok(()), None) => Confirmed::Released,
            };
            lock(&known).end(id, confirmed, clock.now());
            drop(turn);
            // Without a receiver the caller has stopped waiting. The outcome is recorded above.
            let _given_up = answer.send(outcome);
        });
        answered.await.unwrap_or_else(|_| {
            Err(MetadataError::Failed {
                message: "the request ended without an answer".to_owned(),
            })
        })
    }

    /// To be called before a list is requested.
    pub fn now(&self) -> Moment {
        Moment(self.known().clock)
    }

    /// Applies a list that was requested after `asked`. Requests since then are newer than the list. If metadatad was
    /// restarted (`changed`), the list may come from either process, and earlier knowledge is dropped.
    pub fn learn(&self, list: &[Held], asked: Moment, changed: bool) {
        let mut known = self.known();
        let newer: BTreeSet<InstanceId> = known
            .touched
            .iter()
            .filter(|(_, at)| **at > asked.0)
            .map(|(id, _)| *id)
            .chain(known.under_way.iter().copied())
            .collect();
        let keep = |id: &InstanceId| newer.contains(id) && !changed;
        let now = self.clock.now();
        known.held.retain(|id, _| keep(id));
        for held in list.iter().filter(|held| !newer.contains(&held.id)) {
            known.held.insert(held.id, (held.address, held.bundle));
            known.released.remove(&held.id);
            known.note_since(held.id, held.bundle, now);
        }
    }

    /// Drops what is known about other instances.
    pub fn retain(&self, records: &BTreeSet<InstanceId>) {
        let mut known = self.known();
        let under_way = known.under_way.clone();
        let keep = |id: &InstanceId| records.contains(id) || under_way.contains(id);
        known.released.retain(keep);
        known.touched.retain(|id, _| keep(id));
        known.held_since.retain(|id, _| keep(id));
    }

    fn spawn(&self, request: impl Future<Output = ()> + Send + 'static) {
        let mut requests = lock(&self.requests);
        while requests.try_join_next().is_some() {}
        requests.spawn(request);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }
}

/// What a finished request confirms.
#[derive(Clone, Copy)]
enum Confirmed {
    /// metadatad serves this for the instance.
    Serves(Served),
    /// metadatad holds nothing of the instance.
    Released,
    /// Nothing: the request may have been processed or not.
    Nothing,
}

impl Known {
    /// A request is about to be sent: nothing is known until it ends.
    fn begin(&mut self, id: InstanceId) {
        self.held.remove(&id);
        self.released.remove(&id);
        self.under_way.insert(id);
        self.touch(id);
    }

    /// The request ended.
    fn end(&mut self, id: InstanceId, confirmed: Confirmed, now: Timestamp) {
        self.under_way.remove(&id);
        self.touch(id);
        match confirmed {
            Confirmed::Serves(served) => {
                self.held.insert(id, served);
                self.note_since(id, served.1, now);
            }
            Confirmed::Released => {
                self.released.insert(id);
                self.held_since.remove(&id);
            }
            Confirmed::Nothing => {}
        }
    }

    fn touch(&mut self, id: InstanceId) {
        self.clock += 1;
        self.touched.insert(id, self.clock);
    }

    fn note_since(&mut self, id: InstanceId, digest: Digest, now: Timestamp) {
        if self.held_since.get(&id).map(|(held, _)| *held) != Some(digest) {
            self.held_since.insert(id, (digest, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::fake::{FakeMetadata, sample_instance};
    use crate::interfaces::SystemClock;

    fn assignment(host: u8) -> Assignment {
        let instance = sample_instance("a");
        Assignment {
            name: instance.name,
            address: [10, 144, 1, host].into(),
            bundle: instance.bundle,
        }
    }

    fn service() -> (FakeMetadata, Assignments) {
        let service = FakeMetadata::new();
        let assignments = Assignments::new(Arc::new(service.clone()), Arc::new(SystemClock));
        (service, assignments)
    }

    async fn put(service: &FakeMetadata, assignment: &Assignment) {
        let digest = assignment.bundle.digest;
        service
            .put_bundle(digest, bytes::Bytes::new())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_release_follows_a_request_whose_answer_was_not_awaited() {
        let (service, assignments) = service();
        let (id, assignment) = (InstanceId::generate(), assignment(7));
        put(&service, &assignment).await;
        service.set_delays(1);
        // Sent, then dropped.
        assert_eq!(assignments.assign(id, assignment).now_or_never(), None);
        assert!(assignments.may_hold(id));
        assignments.release(id, || true).await.unwrap();
        assert!(!assignments.may_hold(id));
        assert!(service.held().is_empty());
    }

    #[tokio::test]
    async fn a_former_assignment_is_unknown_while_another_request_runs() {
        let (service, assignments) = service();
        let (id, one, other) = (InstanceId::generate(), assignment(7), assignment(8));
        put(&service, &one).await;
        put(&service, &other).await;
        let served = (one.address, one.bundle.digest);
        assignments.assign(id, one.clone()).await.unwrap();
        assert_eq!(assignments.of(id), Some(served));
        service.set_delays(1);
        assert_eq!(assignments.assign(id, other).now_or_never(), None);
        assert_eq!(assignments.of(id), None);
        put(&service, &one).await;
        assignments.assign(id, one).await.unwrap();
        assert_eq!(assignments.of(id), Some(served));
        assert_eq!(service.held()[&id].address, served.0);
    }

    #[tokio::test]
    async fn a_list_older_than_a_request_does_not_affect_its_instance() {
        let (service, assignments) = service();
        let (id, assignment) = (InstanceId::generate(), assignment(7));
        put(&service, &assignment).await;
        assignments.assign(id, assignment).await.unwrap();
        let asked = assignments.now();
        let list = service.status().await.unwrap().instances;
        assignments.release(id, || true).await.unwrap();
        assignments.learn(&list, asked, false);
        assert_eq!(assignments.of(id), None);
        assert!(!assignments.may_hold(id));
        assignments.learn(&list, assignments.now(), false);
        assert!(assignments.of(id).is_some() && assignments.may_hold(id));
    }

    #[tokio::test]
    async fn after_a_failed_request_nothing_is_known() {
        let (service, assignments) = service();
        let (id, assignment) = (InstanceId::generate(), assignment(7));
        put(&service, &assignment).await;
        assignments.release(id, || true).await.unwrap();
        service.set_online(false);
        let refused = assignments.assign(id, assignment).await;
        assert!(refused.is_err());
        assert!(assignments.may_hold(id));
        assert_eq!(assignments.of(id), None);
    }
}
