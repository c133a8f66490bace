//! The state that the drivers of all instances share. Only this folder sees the parts; others use the methods.

use std::path::PathBuf;
use std::sync::Arc;

use waifud_hypervisor::Hypervisor;
use waifud_types::InstanceId;
use waifud_types::status::HypervisorKind;

use crate::control_link::record::InstanceRecord;
use crate::images::Images;
use crate::instance::boot_order::BootOrder;
use crate::instance::files::Files;
use crate::instance::hypervisor_kind::HypervisorKindCache;
use crate::instance::start_permission::StartPermission;

pub(crate) struct InstanceParts {
    pub(super) boot_order: BootOrder,
    pub(super) files: Files,
    pub(super) hypervisor_kind: HypervisorKindCache,
    pub(crate) images: Images,
    pub(super) start_permission: StartPermission,
}

impl InstanceParts {
    /// `records` are those of the node at the start of the agent.
    pub fn new(
        hypervisor: Arc<dyn Hypervisor>,
        files: Files,
        images: Images,
        starts_granted: bool,
        records: &[InstanceRecord],
    ) -> Self {
        Self {
            boot_order: BootOrder::new(records.iter().filter_map(boot_order_entry)),
            files,
            hypervisor_kind: HypervisorKindCache::new(hypervisor),
            images,
            start_permission: StartPermission::new(starts_granted),
        }
    }

    /// From now on, drivers may start guests.
    pub fn grant_starts(&self) {
        self.start_permission.grant();
    }

    /// From now on, drivers may start guests, unless this machine is a copy of the node. Returns whether they may.
    pub fn grant_starts_alone(&self) -> bool {
        self.start_permission.grant_alone()
    }

    /// This machine is a copy of the node: drivers do not start guests before waifud lets them.
    pub fn refuse_starts(&self) {
        self.start_permission.refuse();
    }

    /// Waits until drivers may start guests.
    pub async fn starts_granted(&self) {
        self.start_permission.granted().await;
    }

    /// Stores the hypervisor's kind, which was just observed.
    pub fn set_hypervisor_kind(&self, kind: HypervisorKind) {
        self.hypervisor_kind.set(kind);
    }

    /// The path of the guest's console log.
    pub fn console_log(&self, id: InstanceId) -> PathBuf {
        self.files.console_log(id)
    }
}

/// An instance that should run, with its priority.
fn boot_order_entry(record: &InstanceRecord) -> Option<(InstanceId, i32)> {
    let instance = record.instance.as_ref();
    let instance = instance.filter(|i| record.managed && record.release.is_none() && i.spec.run)?;
    Some((record.id, instance.spec.priority))
}
