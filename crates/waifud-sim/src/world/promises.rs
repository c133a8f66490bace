//! What users were promised: the requests that waifud has acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use waifud_api::SetFirewall;
use waifud_kit::sync::lock;
use waifud_store::{InstanceRow, Labels};
use waifud_types::spec::{RestartPolicy, SpreadSpec};
use waifud_types::{ByteSize, Digest, InstanceId};

/// What users can change of an instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fields {
    /// Whether it is to run.
    pub run: bool,
    /// Its CPUs.
    pub cpus: u32,
    /// Its memory.
    pub memory: ByteSize,
    /// The size of its disk.
    pub disk: ByteSize,
    /// The digest of its user-data.
    pub user_data: Option<Digest>,
    /// The ports of the node that lead to it.
    pub published: BTreeSet<u16>,
    /// Its firewall.
    pub firewall: SetFirewall,
    /// The MAC addresses of its nics, except the first one.
    pub nics: BTreeSet<String>,
    /// Whether it is protected against deletion.
    pub protected: bool,
    /// When to restart it.
    pub restart: RestartPolicy,
    /// Its priority.
    pub priority: i32,
    /// Its labels.
    pub labels: Labels,
    /// The group that is spread over the nodes.
    pub spread: Option<SpreadSpec>,
    /// How many reboots were ordered.
    pub reboots: u64,
}

impl Fields {
    /// What is in waifud's database.
    pub fn of(row: &InstanceRow) -> Self {
        let spec = &row.spec;
        Self {
            run: spec.run,
            cpus: spec.cpus,
            memory: spec.memory_bytes,
            disk: spec.disks.first().map_or(ByteSize(0), |d| d.size_bytes),
            user_data: spec.user_data.as_ref().map(|facts| facts.sha256),
            published: spec.publish.iter().map(|one| one.port).collect(),
            firewall: SetFirewall::from(&spec.firewall),
            nics: spec
                .nics
                .iter()
                .skip(1)
                .map(|nic| nic.mac.to_string())
                .collect(),
            protected: spec.protected,
            restart: spec.restart,
            priority: spec.priority,
            labels: row.labels.clone(),
            spread: spec.placement.spread.clone(),
            reboots: spec.power.reboots,
        }
    }
}

/// A release of an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Release {
    /// Whether the guest is shut down.
    pub stop: bool,
}

/// The last acknowledged state of one instance.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, named where they are used"
)]
pub struct Promise {
    /// Its name.
    pub name: String,
    /// The generation of the last acknowledged change.
    pub generation: u64,
    /// What users chose.
    pub fields: Fields,
    /// Whether its deletion was acknowledged.
    pub deleted: bool,
    /// The release that waifud was told to order, and not to withdraw.
    pub release: Option<Release>,
    /// Whether its guest may stop or restart for a request that may not be complete yet.
    pub may_stop: bool,
    /// Whether a release was ordered or withdrawn since the cluster was at rest: only then it is known to have ended.
    pub was_released: bool,
    /// How often its domain had been started when the last reboot was requested.
    pub starts_before_reboot: Option<u64>,
    /// Whether a restored database does not contain it, so that waifud does not know it and it must stay as it is.
    pub unmanaged: bool,
    /// Whether a restored database made later promises void.
    pub voided: bool,
    /// Whether it is deleted, and a restored database does not contain it, although something of it may be left.
    pub forgotten: bool,
    /// Whether a node may still delete a copy of it: its deletion was ordered before a restored database made that void, or
    /// the copy is what a move left before the instance was lost.
    pub may_vanish: bool,
    /// Whether a move was requested since the cluster was at rest.
    pub moved: bool,
    /// Whether its node was removed, so that waifud has no disks of it.
    pub lost: bool,
}

/// The promises of all instances that ever existed.
#[derive(Default)]
pub struct Promises(Mutex<BTreeMap<InstanceId, Promise>>);

impl Promises {
    /// Adds or replaces one.
    pub fn set(&self, id: InstanceId, promise: Promise) {
        lock(&self.0).insert(id, promise);
    }

    /// Changes one.
    pub fn change(&self, id: InstanceId, change: impl FnOnce(&mut Promise)) {
        if let Some(promise) = lock(&self.0).get_mut(&id) {
            change(promise);
        }
    }

    /// One of them.
    pub fn of(&self, id: InstanceId) -> Option<Promise> {
        lock(&self.0).get(&id).cloned()
    }

    /// Whether there is one for which this is true.
    pub fn is(&self, id: InstanceId, fits: impl FnOnce(&Promise) -> bool) -> bool {
        lock(&self.0).get(&id).is_some_and(fits)
    }

    /// All of them.
    pub fn all(&self) -> BTreeMap<InstanceId, Promise> {
        lock(&self.0).clone()
    }

    /// Calls a function with each of them, until it fails. It must not use the promises in another way.
    pub fn try_each<E>(
        &self,
        mut each: impl FnMut(InstanceId, &Promise) -> Result<(), E>,
    ) -> Result<(), E> {
        let all = lock(&self.0);
        all.iter().try_for_each(|(id, promise)| each(*id, promise))
    }

    /// Forgets one of which nothing is left.
    pub fn forget(&self, id: InstanceId) {
        lock(&self.0).remove(&id);
    }

    /// Those that waifud knows and that are not deleted.
    pub fn living(&self) -> Vec<(InstanceId, Promise)> {
        let all = lock(&self.0);
        let living = all.iter().filter(|(_, promise)| promise.is_managed());
        living.map(|(id, promise)| (*id, promise.clone())).collect()
    }

    /// The cluster has come to rest: what was requested has happened.
    pub fn settled(&self) {
        for promise in lock(&self.0).values_mut() {
            promise.may_stop = promise.is_off();
            promise.was_released = false;
            promise.may_vanish = false;
            promise.moved = false;
            promise.starts_before_reboot = None;
        }
    }
}

impl Promise {
    /// Whether waifud knows it and keeps it.
    pub fn is_managed(&self) -> bool {
        !self.deleted && !self.unmanaged
    }

    /// It may be moved at any time.
    pub fn may_be_moved(&mut self) {
        self.may_stop = true;
        self.was_released = true;
        self.moved = true;
        self.starts_before_reboot = None;
    }

    /// Whether its guest is off once everything has happened, or may end and stay off.
    pub fn is_off(&self) -> bool {
        self.deleted || self.release.is_some() || !self.fields.run
    }
}
