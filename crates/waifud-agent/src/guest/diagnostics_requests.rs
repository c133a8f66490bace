//! Requests to gather guest diagnostics before the next regular run.

use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(crate) struct DiagnosticsRequests(Notify);

impl DiagnosticsRequests {
    pub fn request(&self) {
        self.0.notify_one();
    }

    pub async fn requested(&self) {
        self.0.notified().await;
    }
}
