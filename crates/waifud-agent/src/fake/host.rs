//! A host that a test shuts down and restarts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use waifud_kit::sync::lock;
use waifud_types::{BootId, Digest};

use crate::interfaces::HostPower;

/// A host that a test controls. Clones share one state.
#[derive(Clone, Debug)]
pub struct FakeHost {
    stopping: Arc<AtomicBool>,
    boot: Arc<Mutex<Option<BootId>>>,
    hardware: Arc<Mutex<Option<Digest>>>,
}

impl Default for FakeHost {
    fn default() -> Self {
        Self {
            stopping: Arc::default(),
            // Every fake has the same boot id until it is restarted, so that a replaced agent sees the same boot.
            boot: Arc::new(Mutex::new(
                "00000000-0000-4000-8000-000000000001".parse().ok(),
            )),
            hardware: Arc::new(Mutex::new(Some(Digest::of(b"alder")))),
        }
    }
}

impl FakeHost {
    /// Starts or cancels a shutdown.
    pub fn set_stopping(&self, stopping: bool) {
        self.stopping.store(stopping, Ordering::SeqCst);
    }

    /// Puts the disk into another machine.
    pub fn change_hardware(&self) {
        *lock(&self.hardware) = Some(Digest::of(b"another machine"));
    }

    /// Restarts the host.
    pub fn reboot(&self) {
        *lock(&self.boot) = Some(BootId::generate());
    }
}

#[async_trait]
impl HostPower for FakeHost {
    async fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn boot_id(&self) -> Option<BootId> {
        *lock(&self.boot)
    }

    fn hardware(&self) -> Option<Digest> {
        *lock(&self.hardware)
    }
}
