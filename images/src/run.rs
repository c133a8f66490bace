//! Runs an external tool with an argument vector and a time limit, and returns actionable errors.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Time for a tool to clean up after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(15);

/// One call of a tool.
pub struct Tool {
    program: String,
    package: &'static str,
    args: Vec<OsString>,
    limit: Duration,
}

impl Tool {
    /// `program` of the Debian package `package`, with a limit of two minutes.
    pub fn new(program: impl Into<String>, package: &'static str) -> Self {
        Self {
            program: program.into(),
            package,
            args: Vec::new(),
            limit: Duration::from_mins(2),
        }
    }

    /// Another argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Another time limit.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it and returns its standard output. Errors do not contain the arguments, which may include the password of
    /// a proxy.
    pub fn run(self) -> Result<String> {
        let Self {
            program,
            package,
            args,
            limit,
        } = self;
        // Files instead of pipes: a grandchild that outlives the tool would keep a pipe open.
        let stdout = tempfile::tempfile().context("cannot create a temporary file")?;
        let stderr = tempfile::tempfile().context("cannot create a temporary file")?;
        let share = |file: &File| {
            file.try_clone()
                .context("cannot share a temporary file with a tool")
        };
        // PATH may lack the directories of mke2fs and similar tools.
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let mut path: Vec<_> = std::env::split_paths(&inherited).collect();
        path.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
        let path = std::env::join_paths(path).context("cannot extend PATH")?;
        let spawned = Command::new(&program)
            .args(args)
            .env("PATH", path)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(share(&stdout)?)
            .stderr(share(&stderr)?)
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(
                "{program} is not installed; run: apt-get install --no-install-recommends {package}"
            ),
            Err(error) => {
                return Err(anyhow!(error).context(format!("{program} could not be started")));
            }
        };

        let pid = i32::try_from(child.id()).map(Pid::from_raw);
        let (done, ended) = channel();
        thread::spawn(move || done.send(child.wait()));
        let status = match ended.recv_timeout(limit) {
            Ok(status) => status.with_context(|| format!("cannot wait for {program}"))?,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                if let Ok(pid) = pid {
                    let _ = kill(pid, Signal::SIGTERM);
                    if ended.recv_timeout(GRACE).is_err() {
                        let _ = kill(pid, Signal::SIGKILL);
                        let _ = ended.recv_timeout(GRACE);
                    }
                }
                bail!("{program} did not finish within {} s", limit.as_secs());
            }
        };
        if !status.success() {
            bail!("{program} failed ({status}): {}", tail(&text(stderr)?));
        }
        text(stdout)
    }
}

fn text(mut file: File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_to_end(&mut bytes))
        .context("cannot read a tool's output")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of a tool's output, which usually contain the reason.
fn tail(output: &str) -> String {
    let lines: Vec<&str> = output
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let from = lines.len().saturating_sub(8);
    lines.get(from..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_names_the_package_to_install() {
        let error = Tool::new("waifud-no-such-tool", "some-package")
            .run()
            .unwrap_err();
        assert!(
            error.to_string().contains("apt-get install")
                && error.to_string().contains("some-package")
        );
    }

    #[test]
    fn a_failing_tool_is_quoted_without_its_arguments() {
        let error = Tool::new("ls", "coreutils")
            .args(["--waifud-no-such-option", "secret"])
            .run()
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("unrecognized option") && !error.contains("secret"),
            "{error}"
        );
    }

    #[test]
    fn a_tool_that_hangs_is_ended_at_its_limit() {
        let error = Tool::new("sleep", "coreutils")
            .arg("600")
            .limit(Duration::from_millis(50))
            .run()
            .unwrap_err();
        assert!(error.to_string().contains("did not finish"), "{error}");
    }
}
