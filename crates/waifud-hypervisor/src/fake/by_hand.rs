//! What somebody does to a fake domain's definition by hand, and what of it is seen.

use waifud_types::{ByteSize, InstanceId};

use super::FakeHypervisor;
use crate::DomainEventKind;
use crate::xml::{added, changed};

/// Edits of one domain.
#[derive(Default)]
pub(super) struct ByHand {
    /// Such as `input tablet`; redefinition keeps them.
    devices: Vec<String>,
    /// Redefinition takes it back.
    memory: Option<ByteSize>,
}

impl ByHand {
    /// In the same words as of a real domain; `memory` is what was asked for.
    pub(super) fn drift(&self, memory: ByteSize) -> Vec<String> {
        let other = self.memory.filter(|has| *has != memory);
        let other = other.map(|has| changed("memory", &has, &memory));
        let devices = self.devices.iter().map(|device| added(device));
        other.into_iter().chain(devices).collect()
    }

    /// The domain was defined anew, from another spec.
    pub(super) fn redefined(&mut self) {
        self.memory = None;
    }
}

impl FakeHypervisor {
    /// Somebody adds a device to the domain's definition, such as `input tablet`.
    pub fn add_device(&self, id: InstanceId, device: &str) {
        self.edit(id, |by_hand| by_hand.devices.push(device.to_owned()));
    }

    /// Somebody takes out again every device that was added.
    pub fn take_devices(&self, id: InstanceId) {
        self.edit(id, |by_hand| by_hand.devices.clear());
    }

    /// Somebody writes another memory into the domain's definition.
    pub fn set_memory(&self, id: InstanceId, memory: ByteSize) {
        self.edit(id, |by_hand| by_hand.memory = Some(memory));
    }

    fn edit(&self, id: InstanceId, edit: impl FnOnce(&mut ByHand)) {
        self.change(id, |domain| {
            edit(&mut domain.by_hand);
            Some(DomainEventKind::Changed)
        });
    }
}
