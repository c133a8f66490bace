//! Commands for the guest agent: `exec` and `passwd`.
//!
//! waifud opens a stream of kind `guest-command` to the node, writes one [`GuestCommand`] as a line of JSON, and reads
//! one [`GuestAnswer`] until the end. The node runs these commands only in the instance of the stream.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::Secret;

use crate::stream::StreamRefusal;

/// Maximum size of a command on its stream in bytes: the program's input in base64 and its arguments.
pub const COMMAND_MAX: usize = 2 << 20;
/// Maximum size of a program and its arguments in bytes.
pub const WORDS_MAX: usize = 120 << 10;
/// Maximum size of standard input in bytes.
pub const STDIN_MAX: usize = 1 << 20;
/// Maximum size of captured standard output in bytes. libvirt transfers up to 4 MiB of base64 for both outputs, and a
/// guest agent whose answer exceeds 10 MiB is unusable until it is restarted in the guest.
pub const STDOUT_MAX: usize = 2 << 20;
/// Maximum size of captured standard error in bytes.
pub const STDERR_MAX: usize = 512 << 10;
/// Maximum size of an answer on its stream in bytes: both outputs in base64, of which libvirt transfers up to 4 MiB.
pub const ANSWER_MAX: usize = 8 << 20;
/// Default timeout of a command in seconds.
pub const EXEC_TIMEOUT_DEFAULT: u32 = 60;
/// Maximum timeout of a command in seconds.
pub const EXEC_TIMEOUT_MAX: u32 = 3600;
/// Maximum length of a password in bytes.
pub const PASSWORD_MAX: usize = 512;

/// `POST /v1/instances/{name}/exec`: runs a program in the guest as root and waits until it ends.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The program, which is looked up in the guest agent's PATH, and its arguments.
    pub command: Vec<String>,
    /// How long to wait for the program in seconds, 1 to 3600; 60 by default. The program keeps running after that.
    pub timeout_s: Option<u32>,
    /// Standard input in base64 (RFC 4648, section 4), at most 1 MiB before encoding; null for no input.
    pub stdin_base64: Option<Secret<String>>,
}

impl std::fmt::Debug for ExecRequest {
    /// Arguments can contain secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExecRequest({} words)", self.command.len())
    }
}

/// The result of a program in the guest.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ExecResult {
    /// The exit code as in a shell: 128 plus the signal number if a signal ended the program, 127 if the program does
    /// not exist, 126 if it cannot be executed.
    pub exit_code: u8,
    /// Standard output in base64 (RFC 4648, section 4).
    pub stdout_base64: String,
    /// Standard error in base64.
    pub stderr_base64: String,
    /// True if output was truncated: standard output to 2 MiB, standard error to 512 KiB.
    pub truncated: bool,
}

/// `PUT /v1/instances/{name}/password`: sets the password of a user in the guest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPassword {
    /// An existing user in the guest.
    pub user: String,
    /// The password: one line of 1 to 512 bytes.
    pub password: Secret<String>,
}

/// A command on a stream to a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum GuestCommand {
    /// Run a program.
    Exec(ExecRequest),
    /// Set a password.
    SetPassword(SetPassword),
}

/// The answer to a command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum GuestAnswer {
    /// The program ended.
    Exec(ExecResult),
    /// The password is set.
    PasswordSet,
    /// The program did not end before the timeout and keeps running.
    TimedOut,
    /// The command could not be run.
    Refused(StreamRefusal),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_round_trips_and_debug_output_contains_no_secret() {
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
