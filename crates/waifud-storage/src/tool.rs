//! Runs `qemu-img` on files that nobody vouches for: as another user, without network, with limits, for a while.
//!
//! The file is opened by us and handed over as descriptor 0, so the tool needs no right to any path. What it prints
//! is read up to a limit. It is killed when it takes too long, and when the caller goes away.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use crate::StorageError;

/// The name that errors give the tool.
const NAME: &str = "qemu-img";
/// Where the tool finds descriptor 0.
pub(crate) const STDIN: &str = "/dev/fd/0";
/// Where it finds descriptor 1, when that is a file.
pub(crate) const STDOUT: &str = "/dev/fd/1";
/// What is read of each of its two outputs; reports are below 4 KiB.
const OUTPUT_MAX: u64 = 64 << 10;
/// Address space: enough for the libraries and for the refcounts of the largest images seen, far below a host's memory.
const ADDRESS_SPACE: u64 = 2 << 30;
/// Descriptors: the image, its outputs, an event loop.
const OPEN_FILES: u64 = 64;

/// How the tool is run.
#[derive(Clone, Debug)]
pub(crate) struct Tool {
    /// `qemu-img`, by path or to be found in `PATH`.
    pub(crate) program: PathBuf,
    /// The user and group that it becomes, when we are root.
    pub(crate) user: Option<(u32, u32)>,
    /// Wall-clock limit; the same number limits its CPU time.
    pub(crate) timeout: Duration,
    /// The largest file that it may write, in bytes; 0 for one that only reads.
    pub(crate) write_limit: u64,
}

/// What it said.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Answer {
    /// The first of its complaints, shortened and without control characters: it may quote the image.
    pub(crate) fn complaint(&self) -> String {
        let text = String::from_utf8_lossy(&self.stderr);
        let line = text.lines().find(|line| !line.trim().is_empty());
        let line = line.map_or_else(
            || match self.code {
                Some(code) => format!("it exited with code {code} and said nothing"),
                None => "it was killed, perhaps by a limit on memory or time".to_owned(),
            },
            str::to_owned,
        );
        let printable = line.chars().filter(|c| !c.is_control());
        printable.take(300).collect()
    }
}

impl Tool {
    /// Runs it to its end, with `file` as descriptor 0.
    pub(crate) async fn run(
        &self,
        arguments: &[&OsStr],
        file: Option<File>,
    ) -> Result<Answer, StorageError> {
        self.run_with(arguments, file, None).await
    }

    /// Runs it to its end, with files as descriptors 0 and 1.
    pub(crate) async fn run_into(
        &self,
        arguments: &[&OsStr],
        from: File,
        to: File,
    ) -> Result<Answer, StorageError> {
        self.run_with(arguments, Some(from), Some(to)).await
    }

    async fn run_with(
        &self,
        arguments: &[&OsStr],
        file: Option<File>,
        output: Option<File>,
    ) -> Result<Answer, StorageError> {
        let failed = |message: String| StorageError::Tool {
            tool: NAME,
            message,
        };
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .current_dir("/")
            .stdin(file.map_or_else(Stdio::null, Stdio::from))
            .stdout(output.map_or_else(Stdio::piped, Stdio::from))
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let confine = self.confinement();
        // SAFETY: the closure runs in the child between fork and exec. It makes system calls only, through wrappers
        // that neither allocate nor lock, and touches nothing but its own copied integers.
        unsafe {
            command.pre_exec(confine);
        }
        let mut child = command.spawn().map_err(|error| {
            failed(format!(
                "{} can't be run: {error}; is qemu-utils installed?",
                self.program.display()
            ))
        })?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let talk = async {
            let (stdout, stderr) = tokio::join!(read_some(out), read_some(err));
            let status = child.wait().await?;
            Ok::<_, io::Error>(Answer {
                code: status.code(),
                stdout,
                stderr,
            })
        };
        match tokio::time::timeout(self.timeout, talk).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(failed(format!("its end could not be awaited: {error}"))),
            Err(_late) => {
                // Reaped here rather than by `kill_on_drop`, so that the file is closed when we return.
                let _gone = child.kill().await;
                Err(failed(format!(
                    "it took longer than {:?} and was ended",
                    self.timeout
                )))
            }
        }
    }

    fn confinement(&self) -> impl FnMut() -> io::Result<()> + Send + Sync + use<> {
        let root = geteuid().is_root();
        let user = self.user.filter(|_| root);
        let write_limit = self.write_limit;
        let seconds = self.timeout.as_secs().max(1);
        move || {
            setrlimit(Resource::RLIMIT_AS, ADDRESS_SPACE, ADDRESS_SPACE)?;
            setrlimit(Resource::RLIMIT_CPU, seconds, seconds)?;
            setrlimit(Resource::RLIMIT_FSIZE, write_limit, write_limit)?;
            setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)?;
            setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
            if root {
                // An empty network namespace: not even loopback is up.
                unshare(CloneFlags::CLONE_NEWNET)?;
            }
            if let Some((uid, gid)) = user {
                setgroups(&[])?;
                setgid(Gid::from_raw(gid))?;
                setuid(Uid::from_raw(uid))?;
            }
            prctl::set_no_new_privs()?;
            Ok(())
        }
    }
}

async fn read_some(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // What could not be read is missing from a complaint; the exit code decides.
        let _read = pipe.take(OUTPUT_MAX).read_to_end(&mut bytes).await;
    }
    bytes
}
