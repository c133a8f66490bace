//! Runs a tool: with an argument vector, without a shell, and with a timeout.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::NetworkError;

/// `nft` and the start of dnsmasq take milliseconds; this is for machines that swap.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How many characters of a tool's error message are kept.
const COMPLAINT_MAX: usize = 600;

/// A tool's error message, with a limited length.
pub(super) fn shorten(message: &str) -> String {
    message.trim().chars().take(COMPLAINT_MAX).collect()
}

#[derive(Clone, Debug)]
pub(super) struct Tool {
    name: &'static str,
    path: PathBuf,
}

impl Tool {
    pub(super) const fn new(name: &'static str, path: PathBuf) -> Self {
        Self { name, path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn failed(&self, message: impl Into<String>) -> NetworkError {
        NetworkError::Tool {
            tool: self.name,
            message: message.into(),
        }
    }

    /// Returns the stdout of the tool. An exit code other than 0 is an error with the stderr of the tool.
    pub(super) async fn run<A: AsRef<OsStr>>(
        &self,
        arguments: &[A],
        input: &str,
    ) -> Result<String, NetworkError> {
        tokio::time::timeout(TIMEOUT, self.run_to_end(arguments, input))
            .await
            .map_err(|_| self.failed(format!("no answer within {} s", TIMEOUT.as_secs())))?
    }

    async fn run_to_end<A: AsRef<OsStr>>(
        &self,
        arguments: &[A],
        input: &str,
    ) -> Result<String, NetworkError> {
        let io = |error: std::io::Error| {
            self.failed(format!("cannot run {}: {error}", self.path.display()))
        };
        let mut child = Command::new(&self.path)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(io)?;
        // A tool that fails early closes its stdin: its own message is more useful than the broken pipe.
        let feed = child.stdin.take().map(|mut stdin| async move {
            let _ = stdin.write_all(input.as_bytes()).await;
        });
        let (output, ()) = tokio::join!(child.wait_with_output(), async {
            if let Some(feed) = feed {
                feed.await;
            }
        });
        let output = output.map_err(io)?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            let complaint = shorten(&complaint);
            return Err(self.failed(if complaint.is_empty() {
                output.status.to_string()
            } else {
                complaint
            }));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
