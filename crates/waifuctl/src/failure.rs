//! Every way to fail, with its exit code, its hint and its JSON.

use std::fmt::Write as _;
use std::io::Write as _;

use waifud_api::Problem;
use waifud_api::client::ClientError;

use crate::text::{escape, tame_json};

/// Why a command did not succeed.
#[derive(Debug)]
pub struct Failure {
    problem: Box<Problem>,
    cause: Option<String>,
    exit_code: u8,
}

/// The status of a failure that no server answered: not a number of HTTP's, so that scripts can tell.
const NO_STATUS: u16 = 0;

impl Failure {
    /// The caller's input, the state of things, or a missing permission: exit code 1.
    pub fn input(code: &str, title: impl Into<String>) -> Self {
        Self {
            problem: Box::new(Problem::new(NO_STATUS, code, title)),
            cause: None,
            exit_code: 1,
        }
    }

    /// Our own fault, or waifud can't be reached: exit code 2.
    pub fn internal(code: &str, title: impl Into<String>) -> Self {
        Self {
            problem: Box::new(Problem::new(NO_STATUS, code, title)),
            cause: None,
            exit_code: 2,
        }
    }

    /// A deadline passed; the work goes on: exit code 3.
    pub fn deadline(title: impl Into<String>) -> Self {
        Self {
            problem: Box::new(Problem::new(NO_STATUS, "deadline", title)),
            cause: None,
            exit_code: 3,
        }
    }

    /// Ctrl-C ended the waiting; the work goes on.
    pub fn interrupted(title: impl Into<String>) -> Self {
        Self {
            problem: Box::new(Problem::new(NO_STATUS, "interrupted", title)),
            cause: None,
            // As shells count it: 128 and the number of SIGINT.
            exit_code: 130,
        }
    }

    /// A program in a guest ended so. It has said itself what there is to say.
    pub fn remote_exit(code: u8) -> Self {
        Self {
            problem: Box::new(Problem::new(NO_STATUS, "exit-code", "")),
            cause: None,
            exit_code: code,
        }
    }

    /// What was typed is no command.
    pub fn usage(error: &clap::Error) -> Self {
        use clap::error::{ContextKind, ContextValue};
        let text = error.to_string();
        let title = text.lines().next().unwrap_or_default();
        let failure = Self::input("usage", title.trim_start_matches("error: "))
            .hint("waifuctl --help, or --help after a verb");
        match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(argument)) => {
                failure.field(argument.split(' ').next().unwrap_or(argument))
            }
            _ => failure,
        }
    }

    /// Names the field or argument.
    pub fn field(mut self, field: &str) -> Self {
        self.problem.field = Some(field.to_owned());
        self
    }

    /// Says what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.problem.hint = Some(hint.into());
        self
    }

    /// Says more than the title.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.problem.detail = Some(detail.into());
        self
    }

    /// Puts words before its sentence: whom it concerns.
    pub fn about(mut self, whom: &str) -> Self {
        self.problem.title = format!("{whom}: {}", self.problem.title);
        self
    }

    /// Says what was behind it.
    pub fn cause(mut self, cause: &dyn std::error::Error) -> Self {
        self.cause = Some(waifud_kit::error::root_cause(cause));
        self
    }

    /// For commands whose exit code is another program's: what is not its end has a code of its own.
    pub fn exits_with(mut self, code: u8) -> Self {
        self.exit_code = code;
        self
    }

    /// For the process.
    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }

    /// To stderr, for people or as JSON.
    pub fn print(&self, json: bool) {
        if self.problem.title.is_empty() {
            return;
        }
        let text = if json {
            let mut problem = self.problem.clone();
            if problem.detail.is_none() {
                problem.detail.clone_from(&self.cause);
            }
            tame_json(&serde_json::to_string(&problem).unwrap_or_default())
        } else {
            self.to_text()
        };
        let _stderr_gone = writeln!(std::io::stderr(), "{text}");
    }

    pub(crate) fn to_text(&self) -> String {
        let Problem {
            title,
            field,
            detail,
            hint,
            request_id,
            ..
        } = &*self.problem;
        let mut text = format!("error: {}", escape(title));
        let field = &field.as_deref().map(|field| match option_of(field) {
            Some(option) => format!("{option} ({field})"),
            None => field.to_owned(),
        });
        let lines = [
            ("field", field),
            ("detail", detail),
            ("cause", &self.cause),
            ("hint", hint),
            // Only where a look at the log would help.
            (
                "request",
                if self.exit_code == 2 {
                    request_id
                } else {
                    &None
                },
            ),
        ];
        for (label, value) in lines {
            if let Some(value) = value {
                let _infallible = write!(text, "\n  {label}: {}", escape(value));
            }
        }
        text
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Problem(problem) => {
                let exit_code = if problem.status >= 500 { 2 } else { 1 };
                Self {
                    problem,
                    cause: None,
                    exit_code,
                }
            }
            ClientError::Unreachable { ref at, ref source } => {
                if io_kind(source) == Some(std::io::ErrorKind::PermissionDenied) {
                    return Self::input(
                        "permission-denied",
                        format!("no permission to use waifud's socket {at}"),
                    )
                    .hint(
                        "sudo usermod -aG waifud-admin $USER, then log out and in again; or a token: waifuctl login URL",
                    );
                }
                if at.starts_with("https://") {
                    return Self::internal("unreachable", error.to_string())
                        .cause(source)
                        .hint(https_hint(&waifud_kit::error::root_cause(source)));
                }
                Self::internal("unreachable", error.to_string()).cause(source).hint(format!(
                    "is waifud running on this machine? systemctl status waifud; its socket is set by --socket or \
                     WAIFUD_SOCKET (now {at})"
                ))
            }
            ClientError::TimedOut { .. } => Self::internal("timed-out", error.to_string()).hint(
                "look at waifud's log: journalctl -u waifud; the request may still be carried out",
            ),
            ClientError::Malformed(_) => Self::internal("malformed-answer", error.to_string())
                .hint("are waifuctl and waifud of the same version? waifuctl --version"),
            ClientError::File { ref source, .. } => {
                Self::input("file-unreadable", error.to_string()).cause(source)
            }
        }
    }
}

/// What to do next after a mistake in what was typed, where clap does not say it.
pub fn usage_hint(error: &clap::Error) -> Option<&'static str> {
    let text = error.to_string();
    if error.kind() == clap::error::ErrorKind::UnknownArgument && text.contains("waifuctl ssh ") {
        return Some("a program to run comes after --: waifuctl ssh web -- uptime");
    }
    let missing = error.kind() == clap::error::ErrorKind::MissingRequiredArgument;
    if missing && text.contains("--template <NAME>") {
        return Some(
            "waifuctl template list shows those that are here, waifuctl template catalog more",
        );
    }
    None
}

/// The option of the command line that sets a field of the API, where there is one.
pub fn option_of(field: &str) -> Option<&'static str> {
    Some(match field {
        "name" => "NAME",
        "template" | "spec.template" => "--template",
        "cpus" | "spec.cpus" => "--cpus",
        "memory_bytes" | "spec.memory_bytes" => "--memory",
        "disk_bytes" | "spec.disks[0].size_bytes" => "--disk",
        "pool" | "spec.disks[0].pool" => "--pool",
        "user_data" | "spec.user_data" => "--user-data",
        "ssh_keys" | "spec.ssh_keys" => "--ssh-key",
        "mac" | "spec.nics[0].mac" => "--mac",
        "publish" | "spec.publish" => "--publish",
        "spec.protected" | "protected" => "protect --off",
        "placement.node" | "spec.placement.node" => "--node",
        "placement.require" | "spec.placement.require" => "--require",
        "placement.spread" | "spec.placement.spread" => "--spread",
        "labels" => "--label",
        "url" => "--url",
        "checksum" => "--checksum",
        "checksums_url" => "--checksums-url",
        _ => return None,
    })
}

/// What to do about a server that can't be reached over HTTPS.
fn https_hint(cause: &str) -> String {
    let proxy = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
        .into_iter()
        .find(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    let hint = if cause.contains("UnknownIssuer") || cause.contains("BadSignature") {
        "its certificate is not of the CA that this context trusts; if waifud has a new CA: waifuctl login URL"
    } else if cause.contains("NotValidForName") {
        "its certificate is not for this host name; add it to `advertise` in waifud's waifud.toml"
    } else if cause.contains("certificate") {
        "its certificate is not accepted for this reason; check both clocks, or log in again: waifuctl login URL"
    } else {
        "does waifud listen there? `listen` in its waifud.toml"
    };
    match proxy {
        Some(name) => {
            format!("{hint}; {name} is set: if the proxy refuses, add the host to NO_PROXY")
        }
        None => hint.to_owned(),
    }
}

/// The kind of the input/output error at the bottom of an error.
fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    waifud_kit::error::find::<std::io::Error>(error).map(std::io::Error::kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn a_mistake_in_what_was_typed_names_its_argument() {
        let error = crate::cli::Cli::try_parse_from([
            "waifuctl", "create", "web", "-t", "x", "--memory", "2", "--json",
        ])
        .unwrap_err();
        let failure = Failure::usage(&error);
        assert_eq!(failure.problem.field.as_deref(), Some("--memory"));
        assert!(
            failure.problem.title.contains("unit"),
            "{}",
            failure.problem.title
        );
        assert_eq!(failure.exit_code(), 1);
    }
}
