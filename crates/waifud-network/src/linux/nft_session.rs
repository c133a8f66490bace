//! One long-lived `nft -i` that applies short transactions, one per line (docs/adr/0016).
//!
//! Starting `nft` takes longer than a change of some elements. The session keeps one process and sends it each
//! transaction as one line, which `nft` commits completely or not. `nft -i` does not confirm a line, so a request
//! for a table that does not exist follows it: its error message on stderr ends the answer. All text before it is the
//! refusal of the transaction.
//!
//! A session that ends, does not answer in time, or answers another request is killed. Its last transaction
//! is then in an unknown state, and the caller decides with the kernel's generation. For a while after that no session
//! is started, so that a broken `nft -i` does not delay every change.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::time::{Instant, timeout};

use super::tool::shorten;

/// How long one transaction may take, and how long the end of a killed process may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Writes of up to `PIPE_BUF` bytes to a pipe are atomic (POSIX): `nft` never reads a part of a line as a transaction,
/// not even when this process is killed while it writes.
const LINE_MAX: usize = 4096;

/// The maximum size of an answer in bytes.
const ANSWER_MAX: u64 = 64 << 10;

/// A session is replaced after this many requests: line editors keep every line as history.
const REQUESTS_MAX: u32 = 500;

/// How long no session is started after one has failed.
const PAUSE: Duration = Duration::from_mins(1);

/// The name of a table that does not exist; a number follows.
const MISSING_TABLE: &str = "list table inet waifud-end-of-";

/// Why a transaction was not confirmed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum SessionError {
    /// `nft` refused the complete transaction. Contains its error message.
    Refused(String),
    /// The session cannot be used for this transaction, which was not sent.
    NotSent(&'static str),
    /// The session was killed. The transaction may be in force or not.
    Lost(String),
}

#[derive(Debug)]
pub(super) struct NftSession {
    nft: PathBuf,
    process: Option<Process>,
    /// The number of the last request; never used twice, so an old answer is recognized.
    serial: u64,
    paused_until: Option<Instant>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    stdin: ChildStdin,
    stderr: BufReader<ChildStderr>,
    requests: u32,
}

impl NftSession {
    pub(super) const fn new(nft: PathBuf) -> Self {
        Self {
            nft,
            process: None,
            serial: 0,
            paused_until: None,
        }
    }

    /// Starts the process ahead of the first transaction, which then does not wait for it. A failure is found and
    /// reported by [`run`](Self::run).
    pub(super) fn start(&mut self) {
        let paused = self
            .paused_until
            .is_some_and(|until| Instant::now() < until);
        if self.process.is_none() && !paused {
            self.process = Process::start(&self.nft).ok();
        }
    }

    /// Applies the statements, one per line of `transaction`, as one transaction.
    pub(super) async fn run(&mut self, transaction: &str) -> Result<(), SessionError> {
        let statements: Vec<&str> = transaction.lines().collect();
        self.serial += 1;
        let marker = format!("{MISSING_TABLE}{}", self.serial);
        let lines = format!("{}\n{marker}\n", statements.join("; "));
        if lines.len() > LINE_MAX {
            return Err(SessionError::NotSent("the transaction is too long"));
        }
        self.start();
        let Some(process) = &mut self.process else {
            return Err(SessionError::NotSent("no session is running"));
        };
        let answer = timeout(TIMEOUT, process.ask(&lines, &marker)).await;
        let refusal = match answer {
            Ok(Ok(refusal)) => refusal,
            Ok(Err(why)) => return Err(self.kill(why).await),
            Err(_) => return Err(self.kill("no answer in time".to_owned()).await),
        };
        if process.requests >= REQUESTS_MAX {
            // Ends at the end of its stdin; killed when dropped, which is harmless between transactions.
            self.process = None;
            self.start();
        }
        match refusal {
            None => Ok(()),
            Some(message) => Err(SessionError::Refused(message)),
        }
    }

    /// Kills the process, so that it changes nothing after this.
    async fn kill(&mut self, why: String) -> SessionError {
        self.paused_until = Some(Instant::now() + PAUSE);
        if let Some(mut process) = self.process.take() {
            // A process that cannot be killed is stuck in the kernel; it is not waited for.
            let _killed = timeout(TIMEOUT, process.child.kill()).await;
        }
        SessionError::Lost(why)
    }

    /// Ends the process, if one is running.
    pub(super) async fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _killed = timeout(TIMEOUT, process.child.kill()).await;
        }
    }
}

impl Process {
    fn start(nft: &Path) -> std::io::Result<Self> {
        let mut child = Command::new(nft)
            .arg("-i")
            .env("LC_ALL", "C")
            // nft keeps a history of its lines in the home directory.
            .env("HOME", "/nonexistent")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let missing = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        Ok(Self {
            stdin: child.stdin.take().ok_or_else(missing)?,
            stderr: BufReader::new(child.stderr.take().ok_or_else(missing)?),
            child,
            requests: 0,
        })
    }

    /// Sends a request and reads its answer: nothing when it was applied, or the refusal. An error when the process
    /// cannot be used any more.
    async fn ask(&mut self, lines: &str, marker: &str) -> Result<Option<String>, String> {
        self.requests += 1;
        let sent = self.stdin.write_all(lines.as_bytes()).await;
        sent.map_err(|error| format!("writing to it failed: {error}"))?;
        let mut reader = (&mut self.stderr).take(ANSWER_MAX);
        let mut answer = Vec::new();
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line).await {
                Ok(0) => return Err("it ended".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(format!("reading from it failed: {error}")),
            }
            let line = line.trim_end();
            if line == marker {
                break;
            }
            if line.starts_with(MISSING_TABLE) {
                return Err("it answered another request".to_owned());
            }
            answer.push(line.to_owned());
        }
        Ok(refusal(answer))
    }
}

/// The refusal in an answer up to the marker. The last line is the error about the marker's table; lines that only point
/// at a place (`^^^`) at the beginning belong to the answer before.
fn refusal(mut answer: Vec<String>) -> Option<String> {
    answer.pop();
    let points = |line: &&String| line.chars().all(|c| matches!(c, ' ' | '^' | '~'));
    let message: Vec<_> = answer.iter().skip_while(points).cloned().collect();
    (!message.is_empty()).then(|| shorten(&message.join("\n")))
}

#[cfg(test)]
#[path = "nft_session_tests.rs"]
mod with_nft;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Option<String> {
        refusal(lines.iter().map(|&line| line.to_owned()).collect())
    }

    #[test]
    fn the_markers_error_alone_is_not_a_refusal() {
        let missing = "Error: No such file or directory";
        assert_eq!(of(&[missing]), None);
        assert_eq!(of(&["                ^^^^^", missing]), None);
    }

    #[test]
    fn a_refusal_is_everything_before_the_markers_error() {
        let missing = "Error: No such file or directory";
        let lines = ["  ^^^", "Error: syntax error", "add x", "    ^", missing];
        let refusal = of(&lines).unwrap();
        assert_eq!(refusal, "Error: syntax error\nadd x\n    ^");
    }
}
