//! Manual edits of a fake domain's definition, and the drift that results.

use waifud_types::{ByteSize, InstanceId};

use super::FakeHypervisor;
use crate::DomainEventKind;
use crate::xml::{added, changed};

/// Edits of one domain.
#[derive(Default)]
pub(super) struct ManualEdits {
    /// Added devices, for example `input tablet`. A redefinition keeps them.
    devices: Vec<String>,
    /// The edited memory. A redefinition reverts it.
    memory: Option<ByteSize>,
}

impl ManualEdits {
    /// The drift, in the same sentences as for a real domain. `memory` is the amount in the spec.
    pub(super) fn drift(&self, memory: ByteSize) -> Vec<String> {
        let edited = self.memory.filter(|edited| *edited != memory);
        let memory_change = edited.map(|edited| changed("memory", &edited, &memory));
        let devices = self.devices.iter().map(|device| added(device));
        memory_change.into_iter().chain(devices).collect()
    }

    /// The domain was redefined from another spec.
    pub(super) fn redefined(&mut self) {
        self.memory = None;
    }
}

impl FakeHypervisor {
    /// Adds a device to the domain's definition, for example `input tablet`.
    pub fn add_device(&self, id: InstanceId, device: &str) {
        self.edit(id, |edits| edits.devices.push(device.to_owned()));
    }

    /// Removes all added devices.
    pub fn remove_devices(&self, id: InstanceId) {
        self.edit(id, |edits| edits.devices.clear());
    }

    /// Changes the memory in the domain's definition.
    pub fn set_memory(&self, id: InstanceId, memory: ByteSize) {
        self.edit(id, |edits| edits.memory = Some(memory));
    }

    fn edit(&self, id: InstanceId, edit: impl FnOnce(&mut ManualEdits)) {
        self.change(id, |domain| {
            edit(&mut domain.manual_edits);
            Some(DomainEventKind::Changed)
        });
    }
}
