//! Failures of commands, with exit code, hint and JSON.

use std::fmt::Write as _;
use std::io::Write as _;

use waifud_api::Problem;
use waifud_api::client::ClientError;
use waifud_kit::error::{find, root_cause};

use crate::hint;
use crate::text::{escape, escape_json};

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    problem: Box<Problem>,
    cause: Option<String>,
    exit_code: u8,
}

/// The status of failures that do not come from a server; not a valid HTTP status.
const NO_STATUS: u16 = 0;

impl Failure {
    /// Invalid input, state, or missing permission: exit code 1.
    pub fn input(code: &str, title: impl Into<String>) -> Self {
        Self {
            problem: Box::new(Problem::new(NO_STATUS, code, title)),
            cause: None,
            exit_code: 1,
        }
    }

    /// Internal error, or waifud is unreachable: exit code 2.
    pub fn internal(code: &str, title: impl Into<String>) -> Self {
        Self {
            problem: Box::new(Problem::new(NO_STATUS, code, title)),
            cause: None,
            exit_code: 2,
        }
    }

    /// A deadline passed and the work continues: exit code 3.
    pub fn deadline(title: impl Into<String>) -> Self {
        Self {
            problem: Box::new(Problem::new(NO_STATUS, "deadline", title)),
            cause: None,
            exit_code: 3,
        }
    }

    /// Ctrl-C ended a wait and the work continues.
    pub fn interrupted(title: impl Into<String>) -> Self {
        Self {
            problem: Box::new(Problem::new(NO_STATUS, "interrupted", title)),
            cause: None,
            // As in shells: 128 plus the number of SIGINT.
            exit_code: 130,
        }
    }

    /// The exit code of a program in a guest. Nothing is printed, since the program has printed its own errors.
    pub fn remote_exit(code: u8) -> Self {
        Self {
            problem: Box::new(Problem::new(NO_STATUS, "exit-code", "")),
            cause: None,
            exit_code: code,
        }
    }

    /// The HTTP status of a refusal of waifud; 0 for all other failures.
    pub fn status(&self) -> u16 {
        self.problem.status
    }

    /// A usage error.
    pub fn usage(error: &clap::Error) -> Self {
        use clap::error::{ContextKind, ContextValue};
        let text = error.to_string();
        let title = text.lines().next().unwrap_or_default();
        let failure = Self::input("usage", title.trim_start_matches("error: "))
            .hint(usage_hint(error).unwrap_or("see waifuctl --help or waifuctl COMMAND --help"));
        match error.get(ContextKind::InvalidArg) {
            // Several missing arguments: the text lists them on the following lines.
            Some(ContextValue::Strings(missing)) => {
                let first = missing.first().and_then(|name| name.split(' ').next());
                let mut failure = failure.field(first.unwrap_or_default());
                failure.problem.title = format!(
                    "{} {}",
                    title.trim_start_matches("error: "),
                    missing.join(", ")
                );
                failure
            }
            Some(ContextValue::String(argument)) => {
                failure.field(argument.split(' ').next().unwrap_or(argument))
            }
            _ => failure,
        }
    }

    /// Sets the field or argument.
    pub fn field(mut self, field: &str) -> Self {
        self.problem.field = Some(field.to_owned());
        self
    }

    /// Sets the hint, which replaces those of the server.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        self.problem.hint = Some(hint.clone());
        self.problem.hints = vec![hint.into()];
        self
    }

    /// Sets the detail.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.problem.detail = Some(detail.into());
        self
    }

    /// Prefixes the title with the subject.
    pub fn about(mut self, subject: &str) -> Self {
        self.problem.title = format!("{subject}: {}", self.problem.title);
        self
    }

    /// Sets the cause.
    pub fn cause(mut self, cause: &dyn std::error::Error) -> Self {
        // The layers above the innermost cause repeat the title.
        self.cause = Some(root_cause(cause));
        self
    }

    /// Sets the exit code, for commands that pass on the exit code of another program.
    pub fn exits_with(mut self, code: u8) -> Self {
        self.exit_code = code;
        self
    }

    /// The result of a program that was run elsewhere: its exit code, or `not_run` if it was not run.
    pub fn of_program(ended: Result<u8, Self>, not_run: u8) -> Result<(), Self> {
        match ended.map_err(|failure| failure.exits_with(not_run))? {
            0 => Ok(()),
            code => Err(Self::remote_exit(code)),
        }
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }

    #[cfg(test)]
    pub(crate) fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Prints to stderr, as text or JSON.
    pub fn print(&self, json: bool) {
        if self.problem.title.is_empty() {
            return;
        }
        let text = if json {
            let mut problem = self.problem.clone();
            if problem.detail.is_none() {
                problem.detail.clone_from(&self.cause);
            }
            escape_json(&serde_json::to_string(&problem).unwrap_or_default())
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
            hints,
            request_id,
            ..
        } = &*self.problem;
        let mut text = format!("error: {}", escape(title));
        let field = &field.as_deref().map(|field| match hint::option_of(field) {
            Some(option) => format!("{option} ({field})"),
            None => field.to_owned(),
        });
        // Older servers send only the text.
        let hint = &hint::line(hints).or_else(|| hint.clone());
        let lines = [
            ("field", field),
            ("detail", detail),
            ("cause", &self.cause),
            ("hint", hint),
            // Only if the log can help.
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
                if find::<std::io::Error>(source)
                    .is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied)
                {
                    return Self::input(
                        "permission-denied",
                        format!("permission denied for waifud's socket {at}"),
                    )
                    .hint(
                        "sudo usermod -aG waifud-admin $USER, then log out and in again; or use a token: waifuctl login URL",
                    );
                }
                if at.starts_with("https://") {
                    return Self::internal("unreachable", error.to_string())
                        .cause(source)
                        .hint(https_hint(&root_cause(source)));
                }
                Self::internal("unreachable", error.to_string()).cause(source).hint(format!(
                    "check that waifud is running on this machine: systemctl status waifud; --socket or \
                     WAIFUD_SOCKET sets the path of its socket (now {at}); to use a waifud on another machine: waifuctl login URL"
                ))
            }
            ClientError::TimedOut { .. } => Self::internal("timed-out", error.to_string())
                .hint("see waifud's log: journalctl -u waifud; the request may still take effect"),
            ClientError::Malformed(_) => Self::internal("malformed-answer", error.to_string())
                .hint("check that waifuctl and waifud have the same version: waifuctl version"),
            ClientError::File { ref source, .. } => {
                Self::input("file-unreadable", error.to_string()).cause(source)
            }
        }
    }
}

/// A hint for a usage error, where clap has none.
pub fn usage_hint(error: &clap::Error) -> Option<&'static str> {
    let text = error.to_string();
    if error.kind() == clap::error::ErrorKind::UnknownArgument && text.contains("waifuctl ssh ") {
        return Some("put the program to run after --: waifuctl ssh web -- uptime");
    }
    let missing = error.kind() == clap::error::ErrorKind::MissingRequiredArgument;
    if missing && text.contains("--template <NAME>") {
        return Some(
            "waifuctl template list lists existing templates, waifuctl template catalog those that can be downloaded",
        );
    }
    None
}

/// A hint for a server that is unreachable over HTTPS.
fn https_hint(cause: &str) -> String {
    let proxy = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
        .into_iter()
        .find(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    let hint = if cause.contains("UnknownIssuer") || cause.contains("BadSignature") {
        "the certificate was not issued by the CA that this context trusts; if waifud has a new CA: waifuctl login URL"
    } else if cause.contains("NotValidForName") {
        "the certificate is not valid for this hostname; add it to `advertise` in waifud's waifud.toml"
    } else if cause.contains("certificate") {
        "the certificate was rejected; check both clocks, or log in again: waifuctl login URL"
    } else {
        "check that waifud listens there: `listen` in its waifud.toml"
    };
    match proxy {
        Some(name) => {
            format!(
                "{hint}; {name} is set: if the proxy refuses the connection, add the host to NO_PROXY"
            )
        }
        None => hint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn a_usage_error_names_the_arguments_that_are_missing() {
        for (words, field, missing) in [
            (&["create", "web"][..], "--template", "--template <NAME>"),
            (&["delete"], "<NAMES>...", "<NAMES>..."),
        ] {
            let words = ["waifuctl"].iter().chain(words);
            let error = crate::cli::Cli::try_parse_from(words).unwrap_err();
            let failure = Failure::usage(&error);
            let title = &failure.problem.title;
            assert_eq!(failure.problem.field.as_deref(), Some(field), "{title}");
            assert!(title.ends_with(missing), "{title}");
        }
    }

    #[test]
    fn a_usage_error_names_its_argument() {
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
