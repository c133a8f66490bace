//! Tells waifud what changed, and that the node lives.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::backoff::Backoff;
use crate::failpoints;
use crate::shared::Shared;

/// How long one report may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Goes on for ever.
pub(crate) async fn run(shared: Arc<Shared>) {
    let timing = &shared.settings.timing;
    let mut backoff = Backoff::new(timing.retry_min, Duration::from_secs(5));
    let mut welcomed = shared.welcomed.subscribe();
    let mut last = Instant::now();
    loop {
        tokio::select! {
            () = shared.reports.filled() => {}
            () = sleep_until(last + timing.heartbeat) => {}
        }
        // The sender lives in `shared`: this can't fail.
        drop(welcomed.wait_for(|welcomed| *welcomed).await);
        // Progress gathers; another state is said at once, or people would wait for our clock.
        tokio::select! {
            () = sleep_until(last + timing.report_gap) => {}
            () = shared.reports.urgent() => {}
        }
        let report = shared.reports.take(shared.now());
        let tell = timeout(TIMEOUT, shared.link.report(&report));
        let outcome = failpoints::REPORT.around(tell).await;
        last = Instant::now();
        match outcome {
            Ok(Ok(())) => {
                backoff.reset();
                for id in shared.reports.heard(&report) {
                    if let Err(error) = shared.table.forget_destroyed(id) {
                        tracing::error!(instance = %id, "{}", crate::with_cause(&error));
                    }
                    shared.signals.nudge(id);
                    shared.metadata.tidy(&shared.table);
                }
            }
            Ok(Err(error)) if error.is_final() && shared.reports.split(&report) => {
                tracing::warn!("waifud refused a report; what it says is sent in parts: {error}");
            }
            Ok(Err(error)) if error.is_final() => {
                // The same again would be refused again and keep everything else from being heard.
                tracing::error!("waifud refused a report, which is a bug: {error}");
                sleep(backoff.pause()).await;
            }
            failed => {
                shared.reports.put_back(&report);
                let why = failed.map_or_else(
                    |_| "it did not answer".to_owned(),
                    |result| result.err().map_or_else(String::new, |e| e.to_string()),
                );
                tracing::debug!("a report was not heard: {why}");
                sleep(backoff.pause()).await;
                // Whatever it said waits for another round.
                shared.reports.again();
            }
        }
    }
}
