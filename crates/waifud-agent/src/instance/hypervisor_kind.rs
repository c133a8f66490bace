//! Caches which hypervisor (KVM or TCG) this host runs guests with.

use std::sync::{Arc, Mutex};

use waifud_hypervisor::{Hypervisor, HypervisorError};
use waifud_kit::sync::lock;
use waifud_types::status::HypervisorKind;

pub(crate) struct HypervisorKindCache {
    hypervisor: Arc<dyn Hypervisor>,
    kind: Mutex<Option<HypervisorKind>>,
}

impl HypervisorKindCache {
    pub fn new(hypervisor: Arc<dyn Hypervisor>) -> Self {
        Self {
            hypervisor,
            kind: Mutex::default(),
        }
    }

    /// Asks the hypervisor the first time; later calls use the cached value.
    pub async fn get(&self) -> Result<HypervisorKind, HypervisorError> {
        let known = *lock(&self.kind);
        if let Some(kind) = known {
            return Ok(kind);
        }
        let kind = self.hypervisor.host().await?.hypervisor.kind;
        self.set(kind);
        Ok(kind)
    }

    /// The facts keep the cached value up to date.
    pub fn set(&self, kind: HypervisorKind) {
        *lock(&self.kind) = Some(kind);
    }
}
