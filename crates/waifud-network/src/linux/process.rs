//! Recognizes a process that we started, and ends it.

use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::NetworkError;

/// How long a process may take to end after a signal.
const PATIENCE: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A process, identified by id and start time, because ids are reused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) start_time: u64,
}

impl Process {
    /// The running process with this id; `None` if there is none, or only a zombie.
    pub(super) fn find(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            pid,
            start_time: start_time(&stat)?,
        })
    }

    pub(super) fn runs(self) -> bool {
        Self::find(self.pid) == Some(self)
    }

    /// Whether its command line contains `argument`.
    pub(super) fn was_started_with(self, argument: &Path) -> bool {
        let wanted = argument.as_os_str().as_encoded_bytes();
        std::fs::read(format!("/proc/{}/cmdline", self.pid))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|found| found == wanted))
    }

    pub(super) fn signal(self, signal: Signal) -> Result<(), NetworkError> {
        if !self.runs() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(NetworkError::Kernel {
                what: format!("sending {signal} to process {}", self.pid),
                message: error.desc().to_owned(),
            }),
        }
    }

    /// Ends it with SIGTERM, or with SIGKILL if that takes too long.
    pub(super) async fn end(self) -> Result<(), NetworkError> {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            self.signal(signal)?;
            let gone = tokio::time::timeout(PATIENCE, async {
                while self.runs() {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            });
            if gone.await.is_ok() {
                return Ok(());
            }
        }
        Err(NetworkError::Kernel {
            what: format!("ending process {}", self.pid),
            message: "it is still running after SIGKILL".to_owned(),
        })
    }
}

/// Field 22 of `stat` (proc(5)). Fields are counted after the name (field 2), which may contain blanks and parentheses.
/// `None` for zombies (`Z`) and dead processes (`X`).
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X"))
        .then(|| fields.nth(18)?.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_read_with_any_process_name() {
        let tail = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_time(&format!("7 (a) b) S {tail}")), Some(4711));
        assert_eq!(start_time(&format!("7 (x) Z {tail}")), None);
        assert_eq!(start_time("7 (x) S 1"), None);
    }

    #[test]
    fn another_start_time_is_another_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let us = Process::find(pid).unwrap();
        assert!(us.runs());
        let before = Process {
            start_time: us.start_time - 1,
            ..us
        };
        assert!(!before.runs());
        assert!(!us.was_started_with(Path::new("--no-such-argument")));
    }
}
