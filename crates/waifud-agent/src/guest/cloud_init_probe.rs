//! Asks a guest, through its agent, how far cloud-init is.
//!
//! Only files are read (`guest-file-open`, `-read`, `-close`), so a guest that forbids commands can still be asked.
//! What comes back is a guest's text: bounded here, parsed in [`crate::guest::cloud_init`].

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};
use waifud_hypervisor::{Hypervisor, HypervisorError};
use waifud_types::InstanceId;
use waifud_types::status::CloudInitStatus;

use crate::guest::cloud_init::{self, Files};

/// How long one command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a file that are read at most.
const FILE_MAX: u32 = 64 << 10;

const RESULT: &str = "/run/cloud-init/result.json";
const STATUS: &str = "/run/cloud-init/status.json";
const INSTANCE_ID: &str = "/run/cloud-init/.instance-id";
const DISABLED: &str = "/run/cloud-init/disabled";

/// What cloud-init says in the guest. Fails with `AgentSilent` where no agent answers.
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

/// The beginning of a file; `None` when it can't be opened. A silent agent is an error.
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
        // The agent's own refusal: the file is not there.
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
    // The handle is closed whatever the reading brought; one that stays open costs the guest a few bytes.
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

/// Text from base64 (RFC 4648, section 4); what is not becomes nothing, or replacement signs where it is not UTF-8.
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
    fn base64_becomes_text_and_garbage_becomes_nothing_harmful() {
        assert_eq!(decode("aGVsbG8="), "hello");
        assert_eq!(decode(""), "");
        assert_eq!(decode("%%%"), "");
    }
}
