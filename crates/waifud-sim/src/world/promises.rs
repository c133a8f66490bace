//! What users were promised: the requests that waifud has acknowledged.

use std::collections::BTreeMap;
use std::sync::Mutex;

use waifud_kit::sync::lock;
use waifud_types::InstanceId;

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
    /// Whether it is to run.
    pub run: bool,
    /// Its CPUs.
    pub cpus: u32,
    /// Whether its deletion was acknowledged.
    pub deleted: bool,
    /// Whether waifud was told to release it, and not to withdraw that.
    pub released: bool,
    /// Whether its guest may stop or restart for a request that may not be complete yet.
    pub may_stop: bool,
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

    /// All of them.
    pub fn all(&self) -> BTreeMap<InstanceId, Promise> {
        lock(&self.0).clone()
    }

    /// Those that are not deleted.
    pub fn living(&self) -> Vec<(InstanceId, Promise)> {
        let all = self.all().into_iter();
        all.filter(|(_, promise)| !promise.deleted).collect()
    }

    /// The cluster has come to rest: what was requested has happened.
    pub fn settled(&self) {
        for promise in lock(&self.0).values_mut() {
            promise.may_stop = promise.deleted || promise.released || !promise.run;
        }
    }
}
