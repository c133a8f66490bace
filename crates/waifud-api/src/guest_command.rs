//! Commands that a person has the guest agent carry out: `exec` and `passwd`.
//!
//! waifud opens a stream of kind `guest-command` to the node, writes one [`GuestCommand`] as a line of JSON, and reads
//! one [`GuestAnswer`] until the end. The node carries out these commands in the stream's own instance and no others.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::Secret;

use crate::stream::StreamRefusal;

/// Bytes of one command on its stream at most: a program's input in base64, and its words.
pub const COMMAND_MAX: usize = 2 << 20;
/// Bytes of a program and its arguments at most.
pub const WORDS_MAX: usize = 120 << 10;
/// Bytes of a program's standard input at most.
pub const STDIN_MAX: usize = 1 << 20;
/// Bytes of a program's standard output that are kept at most. libvirt carries 4 MiB of base64 for both outputs, and a
/// guest agent whose answer is longer than 10 MiB can't be used again before it is restarted in the guest.
pub const STDOUT_MAX: usize = 2 << 20;
/// The same of its standard error.
pub const STDERR_MAX: usize = 512 << 10;
/// Bytes of one answer on its stream at most: both outputs in base64, and libvirt carries 4 MiB.
pub const ANSWER_MAX: usize = 8 << 20;
/// Seconds that a command in a guest may take when nobody says how many.
pub const EXEC_TIMEOUT_DEFAULT: u32 = 60;
/// And at most.
pub const EXEC_TIMEOUT_MAX: u32 = 3600;
/// Bytes of a password at most.
pub const PASSWORD_MAX: usize = 512;

/// `POST /v1/instances/{name}/exec`: runs a program in the guest, as root, and waits for its end.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The program, looked for in the guest agent's PATH, and its arguments.
    pub command: Vec<String>,
    /// Seconds until nobody waits for it any more, 1 to 3600; 60 when null. The program is not ended then.
    #[serde(default)]
    pub timeout_s: Option<u32>,
    /// The program's standard input in base64 (RFC 4648, section 4), 1 MiB at most before encoding; none when null.
    #[serde(default)]
    pub stdin_base64: Option<Secret<String>>,
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
    /// Its exit code, as a shell tells it: 128 and the signal's number when a signal ended it, 127 when there is no such
    /// program, 126 when it can't be executed.
    pub exit_code: u8,
    /// What it wrote to standard output, in base64 (RFC 4648, section 4).
    pub stdout_base64: String,
    /// And to standard error.
    pub stderr_base64: String,
    /// Only the beginning of an output was kept: 2 MiB of standard output, 512 KiB of standard error.
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
            stdin_base64: Some(Secret::new("aHVudGVyMg==".to_owned())),
        });
        assert!(!format!("{exec:?}").contains("hunter2"));
    }
}
