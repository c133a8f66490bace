//! Commands that a person has the guest agent carry out: `exec` and `passwd`.
//!
//! waifud opens a stream of kind `guest-command` to the node, writes one [`GuestCommand`] as a line of JSON, and reads
//! one [`GuestAnswer`] until the end. The node carries out these commands in the stream's own instance and no others.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::Secret;

use crate::stream::StreamRefusal;

/// Bytes of one command on its stream at most.
pub const COMMAND_MAX: usize = 256 << 10;
/// Bytes of one answer on its stream at most: both outputs in base64, and libvirt carries 4 MiB.
pub const ANSWER_MAX: usize = 8 << 20;
/// Seconds that a command in a guest may take when nobody says how many.
pub const EXEC_TIMEOUT_DEFAULT: u32 = 60;
/// And at most.
pub const EXEC_TIMEOUT_MAX: u32 = 3600;
/// Bytes of a password at most.
pub const PASSWORD_MAX: usize = 512;

/// `POST /v1/instances/{name}/exec`: runs a program in the guest, as root, without a shell and without input.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The program, looked for in the guest agent's PATH, and its arguments.
    pub command: Vec<String>,
    /// Seconds until nobody waits for it any more, 1 to 3600; 60 when null. The program is not ended then.
    #[serde(default)]
    pub timeout_s: Option<u32>,
}

impl std::fmt::Debug for ExecRequest {
    /// Arguments may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExecRequest({} words)", self.command.len())
    }
}

/// How a program in the guest ended.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ExecResult {
    /// Its exit code; 128 and the signal's number when a signal ended it.
    pub exit_code: u8,
    /// The signal that ended it, if one did.
    pub signal: Option<i64>,
    /// What it wrote to standard output, in base64 (RFC 4648, section 4).
    pub stdout_base64: String,
    /// And to standard error.
    pub stderr_base64: String,
    /// The guest agent kept only the beginning of the output.
    pub truncated: bool,
}

/// `PUT /v1/instances/{name}/password`: sets the password of one of the guest's users.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPassword {
    /// The user, who exists in the guest.
    pub user: String,
    /// The password: one line of 1 to 512 bytes.
    pub password: Secret<String>,
}

/// What a node is asked for over a stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum GuestCommand {
    /// Run a program.
    Exec(ExecRequest),
    /// Set a password.
    SetPassword(SetPassword),
}

/// What it answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum GuestAnswer {
    /// The program ended.
    Exec(ExecResult),
    /// The password is set.
    PasswordSet,
    /// The program did not end in time, and goes on.
    TimedOut,
    /// It could not be done.
    Refused(StreamRefusal),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_survives_the_wire_and_shows_no_secret() {
        let command = GuestCommand::SetPassword(SetPassword {
            user: "debian".to_owned(),
            password: Secret::new("hunter2".to_owned()),
        });
        let text = serde_json::to_string(&command).unwrap();
        assert!(text.contains("hunter2") && !text.contains('\n'));
        assert_eq!(
            serde_json::from_str::<GuestCommand>(&text).unwrap(),
            command
        );
        assert!(!format!("{command:?}").contains("hunter2"));
        let exec = GuestCommand::Exec(ExecRequest {
            command: vec!["echo".to_owned(), "hunter2".to_owned()],
            timeout_s: None,
        });
        assert!(!format!("{exec:?}").contains("hunter2"));
    }
}
