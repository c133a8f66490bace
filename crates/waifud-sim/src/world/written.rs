//! What guests have written to their disks.

use std::collections::BTreeMap;
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
        inner.last.insert(id, mark);
        node.write(&VolumeId { instance: id, disk }, mark);
    }

    /// The disk that counts from now on contains this.
    pub fn set(&self, id: InstanceId, mark: u64) {
        lock(&self.0).last.insert(id, mark);
    }

    /// What the guest wrote last; `None` if its disk is as it was created.
    pub fn last(&self, id: InstanceId) -> Option<u64> {
        lock(&self.0).last.get(&id).copied()
    }

    /// The instance has lost its disk, and gets a new one.
    pub fn forget(&self, id: InstanceId) {
        lock(&self.0).last.remove(&id);
    }
}
