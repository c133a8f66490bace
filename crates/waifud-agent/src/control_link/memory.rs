//! What this node remembers of an instance: changes of it, and its end.

use waifud_types::InstanceId;

use crate::control_link::durable::DurableError;
use crate::control_link::record::Memory;
use crate::control_link::table::{Entry, Table};

impl Table {
    /// Changes an instance's memory; durable when it returns. Without a record nothing happens.
    pub fn remember(
        &self,
        id: InstanceId,
        change: impl FnOnce(&mut Memory),
    ) -> Result<(), DurableError> {
        let mut inner = self.inner();
        let Some(entry) = inner.entries.get_mut(&id) else {
            return Ok(());
        };
        let mut record = entry.record.clone();
        change(&mut record.memory);
        if record == entry.record && !entry.noted {
            return Ok(());
        }
        self.durable.save_instance(&record)?;
        entry.record = record;
        entry.noted = false;
        Ok(())
    }

    /// Changes an instance's memory, which is saved with its next durable change, or by [`Table::save_noted`]. For what the
    /// next pass would find out again after a crash, so that the guest's start does not wait for the disk.
    pub fn note(&self, id: InstanceId, change: impl FnOnce(&mut Memory)) {
        if let Some(entry) = self.inner().entries.get_mut(&id) {
            let before = entry.record.memory.clone();
            change(&mut entry.record.memory);
            entry.noted |= entry.record.memory != before;
        }
    }

    /// Saves what was noted; durable when it returns.
    pub fn save_noted(&self, id: InstanceId) -> Result<(), DurableError> {
        self.remember(id, |_| {})
    }

    /// Removes the record of an instance of which nothing is left, unless the desired state has changed since this version.
    pub fn forget(&self, id: InstanceId, version: u64) -> Result<(), DurableError> {
        self.forget_if(id, |entry| entry.version == version)
    }

    /// Removes the record of an instance whose destruction was confirmed, unless the instance has come back since.
    pub fn forget_destroyed(&self, id: InstanceId) -> Result<(), DurableError> {
        self.forget_if(id, |entry| entry.record.destroyed)
    }

    fn forget_if(
        &self,
        id: InstanceId,
        still: impl FnOnce(&Entry) -> bool,
    ) -> Result<(), DurableError> {
        let mut inner = self.inner();
        if !inner.entries.get(&id).is_some_and(still) {
            return Ok(());
        }
        self.durable.forget_instance(id)?;
        inner.entries.remove(&id);
        Ok(())
    }
}
