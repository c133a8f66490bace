//! Guest agent commands received over a stream. The only ones are running a program and setting a password.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::{sleep, timeout};
use waifud_api::guest_command::{
    COMMAND_MAX, EXEC_TIMEOUT_DEFAULT, EXEC_TIMEOUT_MAX, ExecRequest, ExecResult, GuestAnswer,
    GuestCommand, STDERR_MAX, STDOUT_MAX, SetPassword,
};
use waifud_api::stream::{RefusalReason, StreamRefusal};
use waifud_hypervisor::{ByteStream, Hypervisor, HypervisorError};
use waifud_types::InstanceId;

use super::refusal::refusal;

/// The time limit for one answer of the guest agent.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// The time limit for reading the command, which waifud writes as soon as the stream is open.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// The first pause between checks whether a program has ended.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Runs a program with bounded output: output beyond the limits is read and discarded. A guest agent that captures more
/// than libvirt can carry loses all of it or becomes unusable. The arguments are the two limits in bytes, the program, and
/// its arguments. The script exits with the program's exit code; if the program cannot be executed, with the exit code
/// and message of the shell. `exec` runs programs only, not shell builtins.
const BOUNDED: &str = r#"out=$1 err=$2
shift 2
keep() { head -c "$1"; cat >/dev/null; }
exec 3>&1 4>&2
code=$(
    exec 5>&1
    {
        {
            (exec "$@" 3>&- 4>&- 5>&- 6>&-)
            echo $? >&5
        } 2>&1 >&6 | keep "$err" >&4
    } 6>&1 | keep "$out" >&3
)
exit "${code:-255}""#;

/// Reads one command from the stream, runs it in this instance, and answers. Ends when the client disconnects.
pub(super) async fn serve(
    hypervisor: &Arc<dyn Hypervisor>,
    id: InstanceId,
    wire: Box<dyn ByteStream>,
) {
    let (reader, mut writer) = tokio::io::split(wire);
    let mut reader = BufReader::new(reader);
    let Some(command) = read(&mut reader).await else {
        tracing::warn!(instance = %id, "received an invalid command for the guest agent");
        return;
    };
    let mut rest = [0; 64];
    let disconnected = async { while reader.read(&mut rest).await.is_ok_and(|count| count > 0) {} };
    let answer = tokio::select! {
        answer = run(hypervisor, id, command) => answer,
        () = disconnected => return,
    };
    if let Ok(bytes) = serde_json::to_vec(&answer)
        && writer.write_all(&bytes).await.is_ok()
    {
        let _gone_already = writer.shutdown().await;
    }
}

async fn read(reader: &mut (impl AsyncBufReadExt + Unpin)) -> Option<GuestCommand> {
    let mut line = Vec::new();
    let most = u64::try_from(COMMAND_MAX).ok()?;
    let mut bounded = reader.take(most);
    let read = timeout(READ_TIMEOUT, bounded.read_until(b'\n', &mut line)).await;
    read.ok()?.ok()?;
    serde_json::from_slice(&line).ok()
}

async fn run(
    hypervisor: &Arc<dyn Hypervisor>,
    id: InstanceId,
    command: GuestCommand,
) -> GuestAnswer {
    match command {
        GuestCommand::Exec(request) => {
            let seconds = request.timeout_s.unwrap_or(EXEC_TIMEOUT_DEFAULT);
            let most = Duration::from_secs(seconds.clamp(1, EXEC_TIMEOUT_MAX).into());
            match timeout(most, exec(hypervisor, id, request)).await {
                Ok(Ok(result)) => GuestAnswer::Exec(result),
                Ok(Err(error)) => GuestAnswer::Refused(refused(&error)),
                Err(_) => GuestAnswer::TimedOut,
            }
        }
        GuestCommand::SetPassword(request) => match set_password(hypervisor, id, &request).await {
            Ok(()) => GuestAnswer::PasswordSet,
            Err(error) => GuestAnswer::Refused(refused(&error)),
        },
    }
}

async fn exec(
    hypervisor: &Arc<dyn Hypervisor>,
    id: InstanceId,
    request: ExecRequest,
) -> Result<ExecResult, HypervisorError> {
    // One byte more than the limits shows that output was cut off.
    let limits = [STDOUT_MAX, STDERR_MAX].map(|limit| (limit + 1).to_string());
    let mut arguments = vec!["-c".to_owned(), BOUNDED.to_owned(), "waifuctl".to_owned()];
    arguments.extend(limits);
    arguments.extend(request.command);
    let mut arguments = json!({"path": "/bin/sh", "arg": arguments, "capture-output": true});
    if let (Some(stdin), Some(arguments)) = (request.stdin_base64, arguments.as_object_mut()) {
        arguments.insert("input-data".to_owned(), stdin.expose().as_str().into());
    }
    let command = json!({"execute": "guest-exec", "arguments": arguments});
    let begun = hypervisor
        .agent_command(id, command, COMMAND_TIMEOUT)
        .await?;
    let pid = begun
        .get("pid")
        .cloned()
        .ok_or_else(|| HypervisorError::Other {
            operation: "run the command",
            message: "the guest agent returned no process id".to_owned(),
        })?;
    let mut pause = PAUSE_MIN;
    loop {
        let command = json!({"execute": "guest-exec-status", "arguments": {"pid": pid}});
        let status = hypervisor
            .agent_command(id, command, COMMAND_TIMEOUT)
            .await?;
        if status.get("exited").and_then(Value::as_bool) == Some(true) {
            return Ok(result(&status));
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// `GuestExecStatus` of QEMU's guest agent protocol.
fn result(status: &Value) -> ExecResult {
    let output = |key: &str, limit| {
        let text = status.get(key).and_then(Value::as_str).unwrap_or_default();
        bounded(text, limit)
    };
    let (stdout_base64, more_out) = output("out-data", STDOUT_MAX);
    let (stderr_base64, more_err) = output("err-data", STDERR_MAX);
    let flag = |key: &str| status.get(key).and_then(Value::as_bool) == Some(true);
    let signal = status.get("signal").and_then(Value::as_i64);
    let code = status.get("exitcode").and_then(Value::as_i64);
    // Shells add 128 to the signal's number.
    let code = signal.map(|signal| signal.saturating_add(128)).or(code);
    ExecResult {
        exit_code: code.and_then(|c| u8::try_from(c).ok()).unwrap_or(u8::MAX),
        stdout_base64,
        stderr_base64,
        truncated: more_out || more_err || flag("out-truncated") || flag("err-truncated"),
    }
}

/// The output cut to `limit` bytes, in base64, and whether it was cut.
fn bounded(text: &str, limit: usize) -> (String, bool) {
    let engine = base64::engine::general_purpose::STANDARD;
    match engine.decode(text) {
        Ok(bytes) if bytes.len() > limit => {
            let kept = bytes.get(..limit).unwrap_or_default();
            (engine.encode(kept), true)
        }
        _ => (text.to_owned(), false),
    }
}

async fn set_password(
    hypervisor: &Arc<dyn Hypervisor>,
    id: InstanceId,
    request: &SetPassword,
) -> Result<(), HypervisorError> {
    let password = base64::engine::general_purpose::STANDARD.encode(request.password.expose());
    let arguments = json!({"username": request.user, "password": password, "crypted": false});
    let command = json!({"execute": "guest-set-user-password", "arguments": arguments});
    hypervisor
        .agent_command(id, command, COMMAND_TIMEOUT)
        .await
        .map(drop)
}

fn refused(error: &HypervisorError) -> StreamRefusal {
    match error {
        HypervisorError::NotRunning(_) | HypervisorError::NotFound(_) => {
            refusal(RefusalReason::NotRunning, "the guest is off")
        }
        HypervisorError::AgentUnresponsive(_) | HypervisorError::TimedOut { .. } => refusal(
            RefusalReason::NoGuestAgent,
            "the guest agent does not answer",
        ),
        // A refusal by the agent: no shell, no such user, or a command that the distribution disabled.
        HypervisorError::Other { message, .. } => {
            refusal(RefusalReason::GuestRefused, agent_message(message))
        }
        other => refusal(
            RefusalReason::GuestRefused,
            waifud_kit::error::with_causes(other),
        ),
    }
}

/// The agent's message without the prefix that libvirt adds: `internal error: unable to execute QEMU agent command
/// 'guest-exec': ...` (`qemuAgentCheckError` of libvirt's `qemu_agent.c`).
fn agent_message(message: &str) -> &str {
    message
        .split_once("unable to execute QEMU agent command '")
        .and_then(|(_, rest)| rest.split_once("': "))
        .map_or(message, |(_, message)| message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_becomes_an_exit_code_as_in_shells() {
        let exited = result(&json!({"exited": true, "exitcode": 3, "out-data": "aGk="}));
        assert_eq!(exited.exit_code, 3);
        assert_eq!(exited.stdout_base64, "aGk=");
        let killed = result(&json!({"exited": true, "signal": 9, "err-truncated": true}));
        assert_eq!(killed.exit_code, 137);
        assert!(killed.truncated);
        assert_eq!(result(&json!({"exited": true})).exit_code, 255);
    }

    #[test]
    fn a_refusal_contains_the_agents_message() {
        let full = "internal error: unable to execute QEMU agent command 'guest-exec': \
            The command guest-exec has been disabled for this instance";
        let message = "The command guest-exec has been disabled for this instance";
        assert_eq!(agent_message(full), message);
        assert_eq!(agent_message("something else"), "something else");
    }
}
