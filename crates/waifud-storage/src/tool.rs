//! Runs `qemu-img` on untrusted files: as another user, without network, with limits on resources and time.
//!
//! We open the file and pass it as descriptor 0, so the tool needs no access to any path. Its output is read up to a
//! limit. It is killed when it exceeds its time limit and when the caller is dropped.

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

use waifud_types::ByteSize;

use crate::StorageError;
use crate::layout::Layout;

/// The tool's name in errors.
const NAME: &str = "qemu-img";
/// The path of descriptor 0 for the tool.
pub(crate) const STDIN: &str = "/dev/fd/0";
/// The path of descriptor 1, if that is a file.
pub(crate) const STDOUT: &str = "/dev/fd/1";
/// The maximum number of bytes read from each output; reports are below 4 KiB.
const OUTPUT_MAX: u64 = 64 << 10;
/// Limit of the address space: enough for the libraries and for the refcounts of the largest known images, and far
/// below a host's memory.
const ADDRESS_SPACE: u64 = 2 << 30;
/// Bytes of a volume that the tool handles in a second, at least.
const SLOWEST: u64 = 8 << 20;
/// Limit of descriptors: the image, the outputs and an event loop.
const OPEN_FILES: u64 = 64;

/// How to run the tool.
#[derive(Clone, Debug)]
pub struct Tool {
    /// `qemu-img`, as a path or as a name to find in `PATH`.
    pub(crate) program: PathBuf,
    /// The user and group that it runs as, if we are root.
    pub(crate) user: Option<(u32, u32)>,
    /// The limit on its wall-clock time and on its CPU time.
    pub(crate) timeout: Duration,
    /// The largest file that it may write, in bytes; 0 if it only reads.
    pub(crate) write_limit: u64,
}

/// The result of a run of the tool.
#[derive(Debug)]
pub struct ToolOutput {
    /// The exit code; `None` if a signal ended the tool.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl ToolOutput {
    /// Fails unless the tool exited with code 0. A full disk is [`StorageError::NoSpace`].
    pub(crate) fn success(&self, layout: &Layout) -> Result<(), StorageError> {
        if self.code == Some(0) {
            return Ok(());
        }
        let message = self.error_message();
        if message.contains("No space left on device") {
            return Err(layout.no_space());
        }
        Err(StorageError::Tool {
            tool: NAME,
            message,
        })
    }

    /// The first line of the error output, truncated and without control characters, because it can contain text from
    /// the image.
    pub(crate) fn error_message(&self) -> String {
        let text = String::from_utf8_lossy(&self.stderr);
        let line = text.lines().find(|line| !line.trim().is_empty());
        let line = line.map_or_else(
            || match self.code {
                Some(code) => format!("it exited with code {code} and printed no error"),
                None => "it was killed, probably by a limit on memory or time".to_owned(),
            },
            str::to_owned,
        );
        let printable = line.chars().filter(|c| !c.is_control());
        printable.take(300).collect()
    }
}

impl Tool {
    /// A tool that writes nothing.
    pub(crate) fn new(program: PathBuf, user: Option<(u32, u32)>, timeout: Duration) -> Self {
        Self {
            program,
            user,
            timeout,
            write_limit: 0,
        }
    }

    /// The same tool, with time to read and write a volume of this size.
    pub(crate) fn for_volume(&self, size: ByteSize) -> Self {
        let seconds = Duration::from_secs(size.bytes() / SLOWEST);
        Self {
            timeout: self.timeout.saturating_add(seconds),
            ..self.clone()
        }
    }

    /// Runs the tool with `file` as descriptor 0.
    pub(crate) async fn run(
        &self,
        arguments: &[&OsStr],
        file: Option<File>,
    ) -> Result<ToolOutput, StorageError> {
        self.run_with(arguments, file, None).await
    }

    /// Runs the tool with files as descriptors 0 and 1.
    pub(crate) async fn run_into(
        &self,
        arguments: &[&OsStr],
        from: File,
        to: File,
    ) -> Result<ToolOutput, StorageError> {
        self.run_with(arguments, Some(from), Some(to)).await
    }

    async fn run_with(
        &self,
        arguments: &[&OsStr],
        file: Option<File>,
        output: Option<File>,
    ) -> Result<ToolOutput, StorageError> {
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
        // that neither allocate nor lock, and accesses only its own copied integers.
        unsafe {
            command.pre_exec(confine);
        }
        let mut child = command.spawn().map_err(|error| {
            failed(format!(
                "cannot run {}: {error}; install the package qemu-utils on the node",
                self.program.display()
            ))
        })?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let run = async {
            let (stdout, stderr) = tokio::join!(read_limited(out), read_limited(err));
            let status = child.wait().await?;
            Ok::<_, io::Error>(ToolOutput {
                code: status.code(),
                stdout,
                stderr,
            })
        };
        match tokio::time::timeout(self.timeout, run).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(error)) => Err(failed(format!("cannot wait for it: {error}"))),
            Err(_late) => {
                // Waited for here instead of using `kill_on_drop`, so that the file is closed on return.
                let _may_have_exited = child.kill().await;
                Err(failed(format!(
                    "it exceeded its time limit of {:?} and was killed",
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

async fn read_limited(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // Unread output only shortens an error message; the exit code decides.
        let _read = pipe.take(OUTPUT_MAX).read_to_end(&mut bytes).await;
    }
    bytes
}
