//! Runs waifuctl as a user or a script would.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use waifud_lab::{Https, wait};

/// Longer than every `--wait` in the suites.
const LIMIT: Duration = Duration::from_mins(16);

/// The program and the waifud that it uses.
#[derive(Clone)]
pub struct Waifuctl {
    /// The built program.
    pub program: PathBuf,
    /// The path of waifud's socket on the machine.
    pub socket: PathBuf,
    /// HTTPS access that is used instead of the socket.
    pub https: Option<Https>,
    /// A home directory without the SSH keys of the user who runs the tests.
    pub home: PathBuf,
}

/// The result of a command.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Outcome {
    /// The problem body that `--json` printed on stderr.
    pub fn problem(&self) -> Result<Value> {
        let line = self.stderr.lines().last().context("nothing on stderr")?;
        serde_json::from_str(line).with_context(|| format!("no problem body: {line}"))
    }

    /// The command was refused, and its standard error contains `part`.
    pub fn is_refused(&self, part: &str) -> Result<()> {
        ensure!(
            self.code == 1 && self.stderr.contains(part),
            "no refusal with {part:?}: {self:?}"
        );
        Ok(())
    }

    /// The command was refused with a problem body in which `key` has this value.
    pub fn is_problem(&self, key: &str, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        ensure!(
            self.code == 1 && self.problem()?[key] == value,
            "no problem with {key} {value}: {self:?}"
        );
        Ok(())
    }
}

impl Waifuctl {
    /// The same user on another machine: over HTTPS with a token.
    #[must_use]
    pub fn over(&self, https: Https) -> Self {
        Self {
            https: Some(https),
            ..self.clone()
        }
    }

    /// A command, not started yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env("HOME", &self.home);
        for other in ["WAIFUD_SOCKET", "WAIFUD_URL", "WAIFUD_CA", "WAIFUD_TOKEN"] {
            command.env_remove(other);
        }
        match &self.https {
            None => command.env("WAIFUD_SOCKET", &self.socket),
            Some(https) => command
                .env("WAIFUD_URL", &https.url)
                .env("WAIFUD_CA", &https.ca)
                .env("WAIFUD_TOKEN", &https.token),
        };
        command
    }

    /// Runs a command that may fail.
    pub fn run(&self, args: &[&str]) -> Result<Outcome> {
        let output = wait::output(&mut self.command(args), LIMIT)?;
        Ok(Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a command that must succeed, and returns its JSON output.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let outcome = self.run(&[args, &["--json"]].concat())?;
        ensure!(
            outcome.code == 0,
            "waifuctl {} ended with {}: {}",
            args.join(" "),
            outcome.code,
            outcome.stderr
        );
        serde_json::from_str(&outcome.stdout)
            .with_context(|| format!("waifuctl {} printed invalid JSON", args.join(" ")))
    }
}
