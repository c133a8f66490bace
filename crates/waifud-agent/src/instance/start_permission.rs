//! Whether this node may start instances: waifud has sent its slice, or the time to wait for that has passed.

use tokio::sync::watch;

/// Granted once and never withdrawn while the process runs.
#[derive(Debug)]
pub(crate) struct StartPermission(watch::Sender<bool>);

impl StartPermission {
    pub fn new(granted: bool) -> Self {
        Self(watch::Sender::new(granted))
    }

    pub fn is_granted(&self) -> bool {
        *self.0.borrow()
    }

    pub fn grant(&self) {
        self.0.send_replace(true);
    }

    /// Returns once the permission is granted.
    pub async fn granted(&self) {
        let mut changes = self.0.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _granted = changes.wait_for(|granted| *granted).await;
    }
}
