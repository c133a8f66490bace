//! A machine that goes down when a test says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use crate::seam::HostPower;

/// The fake.
#[derive(Clone, Debug, Default)]
pub struct FakeHost(Arc<AtomicBool>);

impl FakeHost {
    /// It begins to go down, or is up again.
    pub fn set_stopping(&self, stopping: bool) {
        self.0.store(stopping, Ordering::SeqCst);
    }
}

#[async_trait]
impl HostPower for FakeHost {
    async fn is_stopping(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
