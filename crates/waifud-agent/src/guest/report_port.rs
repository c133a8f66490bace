//! Makes the node refuse guests' reports immediately while metadatad does not answer.
//!
//! cloud-init waits for its reporter at the end of each stage. A metadatad that hangs, is stopped, or is being restarted
//! would cost a boot several seconds per stage. So the node's rules reset connections to
//! [`REPORT_PORT`](waifud_types::template::REPORT_PORT) when metadatad has not answered requests of the agent for a while:
//! a restart of metadatad is shorter, and `phone_home` is tried a few times only. An agent that stops accepts reports again,
//! because nothing else would. Requests for documents are not affected: cloud-init must wait for those, because it looks for its datasource only once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::interfaces::MetadataService;
use crate::shared::Shared;

/// After this time without an answer, metadatad counts as hanging. An emulated guest's reports are answered within 0.1 s.
const ANSWER: Duration = Duration::from_secs(1);

/// Runs until the agent stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let timing = &shared.settings.timing;
    let mut failing_since = None;
    // `None` while it is unknown whether the last change is in force.
    let mut refused = Some(false);
    loop {
        let asked = Instant::now();
        if answers(shared.metadata.service().as_ref()).await {
            failing_since = None;
        } else {
            failing_since.get_or_insert(asked);
        }
        let refuse =
            failing_since.is_some_and(|since| since.elapsed() >= timing.refuse_reports_after);
        if refused != Some(refuse) {
            let changed = shared.network.set_reports_refused(&shared.table, refuse);
            match changed.await {
                Ok(()) => {
                    refused = Some(refuse);
                    log(refuse);
                }
                // The next round tries again, also if metadatad has answered by then: the failed change is part of the
                // desired state. The network's own task logs the cause.
                Err(error) => {
                    refused = None;
                    tracing::debug!("cannot change the rules for reports: {error}");
                }
            }
        }
        sleep(timing.report_port).await;
    }
}

/// How long to try to accept reports again when the agent stops.
const LAST_CHANGE: Duration = Duration::from_secs(5);

/// Accepts reports again, when the agent stops and cannot see any more that metadatad answers.
pub(crate) async fn accept_at_stop(shared: &Shared) {
    if !shared.network.are_reports_refused() {
        return;
    }
    let accepted = shared.network.set_reports_refused(&shared.table, false);
    match timeout(LAST_CHANGE, accepted).await {
        Ok(Ok(())) => log(false),
        Ok(Err(error)) => tracing::warn!("cannot accept cloud-init's reports again: {error}"),
        Err(_) => tracing::warn!("accepting cloud-init's reports again took too long"),
    }
}

fn log(refused: bool) {
    if refused {
        tracing::warn!(
            "the metadata service does not answer; refusing cloud-init's reports until it does"
        );
    } else {
        tracing::info!("accepting cloud-init's reports again");
    }
}

/// Whether metadatad answers in time. It is asked for observations that do not exist, which costs it almost nothing.
async fn answers(service: &dyn MetadataService) -> bool {
    let asked = service.observations(u64::MAX, Duration::ZERO);
    timeout(ANSWER, asked)
        .await
        .is_ok_and(|answer| answer.is_ok())
}
