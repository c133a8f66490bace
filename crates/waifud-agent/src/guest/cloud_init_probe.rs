//! Reads cloud-init's state in a guest through the guest agent.
//!
//! It only reads files (`guest-file-open`, `-read`, `-close`), which also works in guests that forbid commands. The answer
//! is untrusted text: it is bounded here and parsed in [`crate::guest::cloud_init`].

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};
use waifud_hypervisor::{Hypervisor, HypervisorError};
use waifud_types::InstanceId;
use waifud_types::status::CloudInitStatus;

use crate::guest::cloud_init::{self, Files};

/// The time limit of one command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum number of bytes read from a file.
const FILE_MAX: u32 = 64 << 10;

const RESULT: &str = "/run/cloud-init/result.json";
const STATUS: &str = "/run/cloud-init/status.json";
const INSTANCE_ID: &str = "/run/cloud-init/.instance-id";
const DISABLED: &str = "/run/cloud-init/disabled";

/// Fails with `AgentUnresponsive` if no agent answers.
pub async fn probe(
    hypervisor: &Arc<dyn Hypervisor>,
    id: InstanceId,
) -> Result<CloudInitStatus, HypervisorError> {
    let mut files = Files {
        result: read(hypervisor, id, RESULT).await?,
        status: read(hypervisor, id, STATUS).await?,
        ..Files::default()
    };
    if files.result.is_some() {
        files.instance_id = read(hypervisor, id, INSTANCE_ID).await?;
    } else if files.status.is_none() {
        files.disabled = read(hypervisor, id, DISABLED).await?.is_some();
    }
    Ok(cloud_init::parse(&files))
}

/// The beginning of a file; `None` if it cannot be opened. An agent that does not answer is an error.
async fn read(
    hypervisor: &Arc<dyn Hypervisor>,
    id: InstanceId,
    path: &str,
) -> Result<Option<String>, HypervisorError> {
    let command = |name: &str, arguments: Value| {
        let command = json!({"execute": name, "arguments": arguments});
        hypervisor.agent_command(id, command, COMMAND_TIMEOUT)
    };
    let opened = command("guest-file-open", json!({"path": path, "mode": "r"})).await;
    let handle = match opened {
        Ok(handle) => handle,
        // A refusal by the agent: the file does not exist.
        Err(HypervisorError::Other { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    if !handle.is_number() {
        return Ok(None);
    }
    let content = command(
        "guest-file-read",
        json!({"handle": handle, "count": FILE_MAX}),
    )
    .await;
    // The handle is closed even after a failed read. One that stays open costs the guest a few bytes.
    let _closed = command("guest-file-close", json!({"handle": handle})).await;
    let content = match content {
        Ok(content) => content,
        Err(HypervisorError::Other { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(
        content
            .get("buf-b64")
            .and_then(Value::as_str)
            .map(decode)
            .unwrap_or_default(),
    ))
}

/// Decodes base64 (RFC 4648, section 4). Invalid base64 becomes an empty text, and invalid UTF-8 replacement characters.
fn decode(text: &str) -> String {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded_and_invalid_input_becomes_empty() {
        assert_eq!(decode("aGVsbG8="), "hello");
        assert_eq!(decode(""), "");
        assert_eq!(decode("%%%"), "");
    }
}
