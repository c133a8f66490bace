//! Requests to run the node's periodic checks before their next regular run.

use tokio::sync::Notify;

/// Requests made before a check starts are merged into one run.
#[derive(Debug, Default)]
pub(crate) struct NodeChecks {
    facts: Notify,
    sweep: Notify,
}

impl NodeChecks {
    pub fn request_facts(&self) {
        self.facts.notify_one();
    }

    pub async fn facts_requested(&self) {
        self.facts.notified().await;
    }

    pub fn request_sweep(&self) {
        self.sweep.notify_one();
    }

    pub async fn sweep_requested(&self) {
        self.sweep.notified().await;
    }
}
