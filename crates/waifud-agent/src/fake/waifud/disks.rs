//! Disks of other nodes, which the node gets through waifud.

use std::path::PathBuf;

use waifud_kit::sync::lock;
use waifud_types::{DiskFormat, InstanceId};

use super::{DiskFault, FakeWaifud};

impl FakeWaifud {
    /// Sends a file as a disk.
    pub fn add_disk(&self, id: InstanceId, index: u32, file: PathBuf) {
        lock(&self.state).disks.insert((id, index), file);
    }

    /// Sets what happens to transfers of disks.
    pub fn set_disk_fault(&self, fault: Option<DiskFault>) {
        lock(&self.state).disk_fault = fault;
    }

    /// Sets the format of the disks that are sent.
    pub fn set_disk_format(&self, format: DiskFormat) {
        lock(&self.state).disk_format = format;
    }

    /// The offset that each transfer of a disk began at.
    pub fn transfers(&self) -> Vec<u64> {
        lock(&self.state).transfers.clone()
    }
}
