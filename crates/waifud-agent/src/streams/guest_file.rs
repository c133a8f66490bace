//! What cloud-init's stages printed, read in the guest by its agent.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};
use waifud_api::stream::{RefusalReason, StreamRefusal};
use waifud_hypervisor::{Hypervisor, HypervisorError};
use waifud_types::InstanceId;

use super::log::last_lines;
use super::refusal;

/// Where cloud-init sends what its stages print, in every distribution.
const LOG: &str = "/var/log/cloud-init-output.log";
/// How long one command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one read.
const PIECE: u64 = 256 << 10;
/// Bytes from the log's end at most.
const MOST: u64 = 2 << 20;

/// The last lines of the log.
pub(super) async fn cloud_init_log(
    hypervisor: &Arc<dyn Hypervisor>,
    id: InstanceId,
    lines: u32,
) -> Result<Vec<u8>, StreamRefusal> {
    let command = |name: &str, arguments: Value| {
        let command = json!({"execute": name, "arguments": arguments});
        hypervisor.agent_command(id, command, COMMAND_TIMEOUT)
    };
    let handle = command("guest-file-open", json!({"path": LOG, "mode": "r"}))
        .await
        .map_err(|error| refused(&error))?;
    if !handle.is_number() {
        return Err(no_log());
    }
    let mut bytes = Vec::new();
    let outcome = async {
        // From the end, as far as is wanted at most; a log that is shorter has its beginning there.
        let back = i64::try_from(MOST).unwrap_or(0);
        let seek = json!({"handle": handle, "offset": -back, "whence": "end"});
        let _shorter = command("guest-file-seek", seek).await;
        while bytes.len() < usize::try_from(MOST).unwrap_or(0) {
            let read = json!({"handle": handle, "count": PIECE});
            let answer = command("guest-file-read", read).await?;
            let text = answer.get("buf-b64").and_then(Value::as_str);
            let piece = base64::engine::general_purpose::STANDARD
                .decode(text.unwrap_or_default())
                .unwrap_or_default();
            bytes.extend_from_slice(&piece);
            if piece.is_empty() || answer.get("eof").and_then(Value::as_bool) == Some(true) {
                break;
            }
        }
        Ok(())
    };
    let outcome: Result<(), HypervisorError> = outcome.await;
    let _closed = command("guest-file-close", json!({"handle": handle})).await;
    outcome.map_err(|error| refused(&error))?;
    let from = last_lines(&bytes, lines);
    Ok(bytes.split_off(from))
}

fn no_log() -> StreamRefusal {
    refusal(
        RefusalReason::NoLog,
        format!("the guest has no {LOG}: cloud-init has not printed anything yet"),
    )
}

fn refused(error: &HypervisorError) -> StreamRefusal {
    match error {
        // The agent's own refusal: the file is not there.
        HypervisorError::Other { .. } => no_log(),
        HypervisorError::NotRunning(_) | HypervisorError::NotFound(_) => {
            refusal(RefusalReason::NotRunning, "the guest is off")
        }
        HypervisorError::AgentSilent(_) | HypervisorError::TimedOut { .. } => refusal(
            RefusalReason::NoGuestAgent,
            "no guest agent answers, and the log lies in the guest",
        ),
        other => refusal(RefusalReason::Other, crate::with_cause(other)),
    }
}
