//! Whether this node may start instances: waifud has sent its slice, or the time to wait for that has passed.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// Granted once and never withdrawn while the process runs.
#[derive(Debug)]
pub(crate) struct StartPermission {
    granted: watch::Sender<bool>,
    /// waifud has said that this machine is a copy of the node: it starts nothing without waifud.
    is_copy: AtomicBool,
}

impl StartPermission {
    pub fn new(granted: bool) -> Self {
        Self {
            granted: watch::Sender::new(granted),
            is_copy: AtomicBool::new(false),
        }
    }

    pub fn is_granted(&self) -> bool {
        *self.granted.borrow()
    }

    pub fn grant(&self) {
        self.granted.send_replace(true);
    }

    /// Grants the permission without an answer of waifud, unless its last one was that this machine is a copy. Returns whether
    /// it did.
    pub fn grant_alone(&self) -> bool {
        if self.is_copy.load(Ordering::Relaxed) {
            return false;
        }
        self.grant();
        true
    }

    /// waifud has said that this machine is a copy of the node.
    pub fn refuse(&self) {
        self.is_copy.store(true, Ordering::Relaxed);
    }

    /// Returns once the permission is granted.
    pub async fn granted(&self) {
        let mut changes = self.granted.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _granted = changes.wait_for(|granted| *granted).await;
    }
}
