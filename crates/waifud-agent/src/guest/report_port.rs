//! Has guests' reports refused immediately while metadatad does not answer.
//!
//! cloud-init waits for its reporter at the end of each stage. A metadatad that hangs, is stopped, or is being restarted
//! would cost a boot several seconds per stage. So the node's rules reset connections to
//! [`REPORT_PORT`](waifud_types::template::REPORT_PORT) as long as metadatad does not answer a request of the agent. Requests
//! for documents are not affected: cloud-init must wait for those, because it looks for its datasource only once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::interfaces::MetadataService;
use crate::shared::Shared;

/// After this time without an answer, metadatad counts as hanging. An emulated guest's reports are answered within 0.1 s.
const ANSWER: Duration = Duration::from_secs(1);

/// Runs until the agent stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let pause = shared.settings.timing.report_port;
    // `None` while it is unknown whether the last change is in force.
    let mut refused = Some(false);
    loop {
        let refuse = !answers(shared.metadata.service().as_ref()).await;
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
        sleep(pause).await;
    }
}

fn log(refused: bool) {
    if refused {
        tracing::warn!(
            "the metadata service does not answer; refusing cloud-init's reports until it does"
        );
    } else {
        tracing::info!("the metadata service answers; accepting cloud-init's reports again");
    }
}

/// Whether metadatad answers in time. It is asked for observations that do not exist, which costs it almost nothing.
async fn answers(service: &dyn MetadataService) -> bool {
    let asked = service.observations(u64::MAX, Duration::ZERO);
    timeout(ANSWER, asked)
        .await
        .is_ok_and(|answer| answer.is_ok())
}
