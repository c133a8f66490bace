//! Reads cloud-init's output log inside the guest through the guest agent.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};
use waifud_api::stream::{RefusalReason, StreamRefusal};
use waifud_hypervisor::{Hypervisor, HypervisorError};
use waifud_types::InstanceId;

use super::log::last_lines;
use super::refusal::refusal;

/// The output of cloud-init's stages, at this path in every distribution.
const LOG: &str = "/var/log/cloud-init-output.log";
/// The time limit of one command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one read.
const PIECE: u64 = 256 << 10;
/// The maximum size of the returned end of the log.
const SIZE_MAX: u64 = 2 << 20;

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
        // Seek back from the end. For a shorter log this fails and leaves the position at its beginning.
        let back = i64::try_from(SIZE_MAX).unwrap_or(0);
        let seek = json!({"handle": handle, "offset": -back, "whence": "end"});
        let _shorter = command("guest-file-seek", seek).await;
        while bytes.len() < usize::try_from(SIZE_MAX).unwrap_or(0) {
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
        // A refusal by the agent: the file does not exist.
        HypervisorError::Other { .. } => no_log(),
        HypervisorError::NotRunning(_) | HypervisorError::NotFound(_) => {
            refusal(RefusalReason::NotRunning, "the guest is off")
        }
        HypervisorError::AgentUnresponsive(_) | HypervisorError::TimedOut { .. } => refusal(
            RefusalReason::NoGuestAgent,
            "cannot read the log inside the guest: the guest agent does not answer",
        ),
        other => refusal(RefusalReason::Other, waifud_kit::error::with_causes(other)),
    }
}
