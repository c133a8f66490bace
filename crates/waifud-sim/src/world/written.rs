//! What guests have written to their disks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use waifud_kit::sync::lock;
use waifud_types::{InstanceId, VolumeId};

use super::Node;

/// What each guest wrote last: a number that was never written before.
#[derive(Default)]
pub struct Written(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    newest: u64,
    last: BTreeMap<InstanceId, u64>,
    /// Instances that may have either of two disks.
    unsettled: BTreeSet<InstanceId>,
}

impl Written {
    /// The instance's guest, which runs on the node, writes to its disk.
    pub fn write(&self, node: &Node, id: InstanceId) {
        let Ok(disk) = "root".parse() else {
            return;
        };
        let mut inner = lock(&self.0);
        inner.newest += 1;
        let mark = inner.newest;
        if !inner.unsettled.contains(&id) {
            inner.last.insert(id, mark);
        }
        node.write(&VolumeId { instance: id, disk }, mark);
    }

    /// The disk that counts from now on contains this.
    pub fn set(&self, id: InstanceId, mark: u64) {
        let mut inner = lock(&self.0);
        inner.unsettled.remove(&id);
        inner.last.insert(id, mark);
    }

    /// Whether the instance may have a new disk instead of the one that it wrote to, so that nothing is known about its contents.
    pub fn is_unsettled(&self, id: InstanceId) -> bool {
        lock(&self.0).unsettled.contains(&id)
    }

    /// The instance was deleted, and a restored database contains it: it keeps its disk or gets a new one, as the node receives the
    /// order or the restored instance first.
    pub fn unsettle(&self, id: InstanceId) {
        let mut inner = lock(&self.0);
        inner.last.remove(&id);
        inner.unsettled.insert(id);
    }

    /// What the guest wrote last; `None` if its disk is as it was created, or unsettled.
    pub fn last(&self, id: InstanceId) -> Option<u64> {
        lock(&self.0).last.get(&id).copied()
    }

    /// The instance has lost its disk, and gets a new one.
    pub fn forget(&self, id: InstanceId) {
        let mut inner = lock(&self.0);
        inner.unsettled.remove(&id);
        inner.last.remove(&id);
    }
}
