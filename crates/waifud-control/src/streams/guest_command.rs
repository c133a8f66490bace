//! Commands for the guest agent: one request to the node over a stream, and one answer.

use std::time::Duration;

use base64::Engine;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use waifud_api::Problem;
use waifud_api::guest_command::{
    ANSWER_MAX, COMMAND_MAX, EXEC_TIMEOUT_DEFAULT, EXEC_TIMEOUT_MAX, ExecRequest, ExecResult,
    GuestAnswer, GuestCommand, PASSWORD_MAX, STDIN_MAX, SetPassword, WORDS_MAX,
};
use waifud_api::hint::HintKind;
use waifud_api::stream::{RefusalReason, StreamKind, StreamRefusal};

use super::{AgentEnd, OpenStream};
use crate::streams::problems as stream_problems;
use crate::{Control, ControlError, Principal};

/// The time that a node may take in addition to the program's timeout.
const SLACK: Duration = Duration::from_secs(30);

impl Control {
    /// Runs a program in a guest.
    pub(crate) async fn exec(
        &self,
        name: &str,
        request: ExecRequest,
        caller: Principal,
    ) -> Result<ExecResult, ControlError> {
        check_exec(&request)?;
        let seconds = request.timeout_s.unwrap_or(EXEC_TIMEOUT_DEFAULT);
        let most = Duration::from_secs(seconds.into()) + SLACK;
        let command = GuestCommand::Exec(request);
        match self.guest_command(name, command, caller, most).await? {
            GuestAnswer::Exec(result) => Ok(result),
            GuestAnswer::TimedOut => Err(timed_out(seconds).into()),
            other => Err(unexpected(name, other).into()),
        }
    }

    /// Sets the password of one of a guest's users.
    pub(crate) async fn set_password(
        &self,
        name: &str,
        request: SetPassword,
        caller: Principal,
    ) -> Result<(), ControlError> {
        check_password(&request)?;
        let command = GuestCommand::SetPassword(request);
        match self.guest_command(name, command, caller, SLACK).await? {
            GuestAnswer::PasswordSet => Ok(()),
            other => Err(unexpected(name, other).into()),
        }
    }

    async fn guest_command(
        &self,
        name: &str,
        command: GuestCommand,
        caller: Principal,
        most: Duration,
    ) -> Result<GuestAnswer, ControlError> {
        let mut line = serde_json::to_vec(&command).unwrap_or_default();
        line.push(b'\n');
        if line.len() > COMMAND_MAX {
            return Err(bad(
                "command",
                "the command is too long",
                "copy it to a file in the guest",
            )
            .into());
        }
        let stream = self
            .open_stream(name, StreamKind::GuestCommand, caller)
            .await?;
        let OpenStream {
            mut agent,
            mut guard,
            permit: _permit,
        } = stream;
        let answer = tokio::select! {
            answer = timeout(most, converse(&mut agent, &line)) => answer.ok().flatten(),
            reason = guard.closed() => return Err(interrupted(reason.reason()).into()),
        };
        answer.ok_or_else(|| interrupted("the node did not answer").into())
    }
}

async fn converse(agent: &mut AgentEnd, line: &[u8]) -> Option<GuestAnswer> {
    agent.write_all(line).await.ok()?;
    agent.flush().await.ok()?;
    let mut answer = Vec::new();
    let most = u64::try_from(ANSWER_MAX).ok()?;
    agent.take(most).read_to_end(&mut answer).await.ok()?;
    serde_json::from_slice(&answer).ok()
}

fn check_exec(request: &ExecRequest) -> Result<(), Problem> {
    if request.command.first().is_none_or(String::is_empty) {
        return Err(bad(
            "command",
            "command is empty",
            "use the program followed by its arguments",
        ));
    }
    if request.command.iter().any(|word| word.contains('\0')) {
        return Err(bad(
            "command",
            "command contains a NUL character",
            "remove it: arguments cannot contain NUL",
        ));
    }
    let words: usize = request.command.iter().map(|word| word.len() + 1).sum();
    if words > WORDS_MAX {
        return Err(bad(
            "command",
            format!("command exceeds the limit of {} KiB", WORDS_MAX >> 10),
            "send a long script to sh on stdin",
        ));
    }
    if let Some(stdin) = &request.stdin_base64 {
        let stdin = base64::engine::general_purpose::STANDARD.decode(stdin.expose());
        let stdin = stdin.map_err(|_| {
            let hint = "encode it by RFC 4648, section 4, with padding";
            bad("stdin_base64", "stdin_base64 is not valid base64", hint)
        })?;
        if stdin.len() > STDIN_MAX {
            return Err(bad(
                "stdin_base64",
                format!("the input exceeds the limit of {} MiB", STDIN_MAX >> 20),
                "copy a larger file into the guest over SSH",
            ));
        }
    }
    if request
        .timeout_s
        .is_some_and(|seconds| !(1..=EXEC_TIMEOUT_MAX).contains(&seconds))
    {
        let hint = format!("use a value from 1 to {EXEC_TIMEOUT_MAX}");
        return Err(bad("timeout_s", "timeout_s is out of range", hint));
    }
    Ok(())
}

fn check_password(request: &SetPassword) -> Result<(), Problem> {
    let user = &request.user;
    let well_formed = !user.is_empty() && user.len() <= 256 && !user.starts_with('-');
    if !well_formed || user.chars().any(|c| c.is_control() || c == ':' || c == '/') {
        return Err(bad(
            "user",
            "user is not a valid user name",
            "for example, use debian or root",
        ));
    }
    let password = request.password.expose();
    if password.is_empty() || password.len() > PASSWORD_MAX {
        let hint = format!("use 1 to {PASSWORD_MAX} bytes");
        return Err(bad("password", "the password is empty or too long", hint));
    }
    if password.chars().any(char::is_control) {
        return Err(bad(
            "password",
            "the password contains control characters",
            "remove control characters and line breaks",
        ));
    }
    Ok(())
}

fn bad(field: &str, title: impl Into<String>, hint: impl Into<waifud_api::Hint>) -> Problem {
    Problem::new(422, "invalid-field", title)
        .field(field)
        .hint(hint)
}

fn timed_out(seconds: u32) -> Problem {
    Problem::new(
        504,
        "exec-timed-out",
        format!("the program did not exit within {seconds} s and keeps running in the guest"),
    )
    .field("timeout_s")
    .hint("use a longer timeout, or run the program in the background")
}

fn interrupted(why: &str) -> Problem {
    Problem::new(
        502,
        "stream-failed",
        format!("the result of the command is unknown: {why}"),
    )
    .hint("check in the guest whether the command was executed")
}

/// `name` is the instance as the client named it.
fn unexpected(name: &str, answer: GuestAnswer) -> Problem {
    let refusal = match answer {
        GuestAnswer::Refused(refusal) => refusal,
        _ => StreamRefusal {
            reason: RefusalReason::Other,
            message: "unexpected answer".to_owned(),
        },
    };
    let problem = stream_problems::stream_refused(StreamKind::GuestCommand, &refusal)
        .about(HintKind::Instance, name);
    Problem {
        title: match refusal.reason {
            RefusalReason::NoGuestAgent => "the guest agent does not answer".to_owned(),
            RefusalReason::GuestRefused => problem.title.replacen(
                "the node could not open the guest-command",
                "the guest agent refused",
                1,
            ),
            _ => problem.title,
        },
        ..problem
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_types::Secret;

    fn password(user: &str, password: &str) -> Result<(), Option<String>> {
        let request = SetPassword {
            user: user.to_owned(),
            password: Secret::new(password.to_owned()),
        };
        check_password(&request).map_err(|problem| problem.field)
    }

    #[test]
    fn bad_requests_name_their_field() {
        let exec = |command: &[&str], timeout_s| {
            let request = ExecRequest {
                command: command.iter().map(|&word| word.to_owned()).collect(),
                timeout_s,
                stdin_base64: None,
            };
            check_exec(&request).map_err(|problem| problem.field)
        };
        assert_eq!(exec(&["true"], None), Ok(()));
        let command = Err(Some("command".to_owned()));
        let long = "x".repeat(WORDS_MAX);
        for bad in [&[][..], &[""], &["sh", "a\0b"], &[&long]] {
            assert_eq!(exec(bad, None), command, "{bad:?}");
        }
        let timeout = Err(Some("timeout_s".to_owned()));
        assert_eq!(exec(&["true"], Some(0)), timeout);
        assert_eq!(exec(&["true"], Some(3601)), timeout);
        let input = |text: String| {
            let request = ExecRequest {
                command: vec!["cat".to_owned()],
                timeout_s: None,
                stdin_base64: Some(Secret::new(text)),
            };
            check_exec(&request).map_err(|problem| problem.field)
        };
        let encoded = |size| base64::engine::general_purpose::STANDARD.encode(vec![0; size]);
        assert_eq!(input(encoded(STDIN_MAX)), Ok(()));
        for bad in [encoded(STDIN_MAX + 1), "%".to_owned()] {
            assert_eq!(input(bad), Err(Some("stdin_base64".to_owned())));
        }

        assert_eq!(password("debian", "pass word: ä"), Ok(()));
        for bad in ["", "-x", "a:b", "a\nb"] {
            assert_eq!(password(bad, "x"), Err(Some("user".to_owned())), "{bad}");
        }
        for bad in ["", "a\nb", &"x".repeat(513)] {
            assert_eq!(password("root", bad), Err(Some("password".to_owned())));
        }
    }
}
