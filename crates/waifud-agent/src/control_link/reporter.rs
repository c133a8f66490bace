//! Sends reports to waifud: changes, and heartbeats.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::backoff::Backoff;
use crate::failpoints;
use crate::shared::Shared;

/// How long one report may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Runs until the agent stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let timing = &shared.settings.timing;
    let mut backoff = Backoff::new(timing.retry_min, Duration::from_secs(5));
    let mut last = Instant::now();
    loop {
        tokio::select! {
            () = shared.reports.pending() => {}
            () = sleep_until(last + timing.heartbeat) => {}
        }
        shared.reports.connected().await;
        // Progress is collected for a moment. A new state is sent at once, because users wait for it.
        tokio::select! {
            () = sleep_until(last + timing.report_gap) => {}
            () = shared.reports.urgent() => {}
        }
        let report = shared.reports.take(shared.now());
        let send = timeout(TIMEOUT, shared.link.report(&report));
        let outcome = failpoints::REPORT.around(send).await;
        last = Instant::now();
        match outcome {
            Ok(Ok(())) => {
                backoff.reset();
                for id in shared.reports.acknowledge(&report) {
                    if let Err(error) = shared.table.forget_destroyed(id) {
                        tracing::error!(instance = %id, "{}", waifud_kit::error::with_causes(&error));
                    }
                    shared.signals.nudge(id);
                    shared.metadata.remove_unused_bundles(&shared.table);
                }
            }
            Ok(Err(error)) if error.is_final() && shared.reports.split(&report) => {
                tracing::warn!("waifud refused a report; splitting it: {error}");
            }
            Ok(Err(error)) if error.is_final() => {
                // waifud would refuse it again, and it would block everything else.
                tracing::error!("waifud refused a report, which is a bug: {error}");
                sleep(backoff.pause()).await;
            }
            failed => {
                shared.reports.requeue(&report);
                if let Ok(Err(error)) = &failed {
                    shared.reports.order.failed(error);
                }
                let why = failed.map_or_else(
                    |_| "no answer".to_owned(),
                    |result| result.err().map_or_else(String::new, |e| e.to_string()),
                );
                tracing::debug!("could not deliver a report: {why}");
                sleep(backoff.pause()).await;
                // Its entries wait for the next report.
                shared.reports.notify_pending();
            }
        }
    }
}
