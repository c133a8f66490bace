//! The handle of a lab.

mod machines;
mod services;
mod up;

use std::ffi::OsStr;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::guard;
use crate::options::{LabSpec, MachineSpec};
use crate::pids::Pids;
use crate::services::search_path;
use crate::stale::remove;
use crate::{Https, OUTSIDE, https, layout, relay, wait};

/// Limit for one machine's services to become ready.
const START_LIMIT: Duration = Duration::from_mins(1);
/// Longer than the guard takes to kill processes that do not stop.
const DOWN_LIMIT: Duration = Duration::from_secs(40);

/// A running lab. Dropping a handle of [`Lab::up`] stops the lab, unless the options say that it stays.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    spec: LabSpec,
    guard_pid: i32,
    /// The guard, if this process started it. It notices the end of this process by its standard input.
    guard: Option<Child>,
    owned: bool,
}

impl Lab {
    /// Access to the lab's waifud over HTTPS from outside. The first call creates a token.
    ///
    /// # Errors
    /// No waifud runs in the lab, or it creates no token.
    pub fn https(&self) -> Result<Https> {
        if let Some(made) = https::read(&self.dir)? {
            return Ok(made);
        }
        https::make(self, &self.waifud()?.name)?;
        https::read(&self.dir)?.context("the lab's relay is not running")
    }

    /// A handle of the lab in `dir`, which another process started. Dropping the handle does not stop the lab.
    ///
    /// # Errors
    /// No lab runs in `dir`.
    pub fn attach(dir: &Path) -> Result<Self> {
        ensure!(guard::alive(dir), "no lab runs in {}", dir.display());
        Ok(Self {
            dir: dir.to_owned(),
            spec: LabSpec::read(dir)?,
            guard_pid: Pids::read(dir)?.guard,
            guard: None,
            owned: false,
        })
    }

    /// The lab's directory on the host.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The lab's name. Its processes have it in the environment variable `WAIFUD_LAB`.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The nodes' names.
    pub fn nodes(&self) -> Vec<&str> {
        self.spec.nodes().map(|node| node.name.as_str()).collect()
    }

    /// The names of all machines but "outside": the nodes, after waifud's machine if that is not a node.
    pub fn machines(&self) -> Vec<&str> {
        let machines = self.spec.machines.iter().skip(1);
        machines.map(|machine| machine.name.as_str()).collect()
    }

    /// The machine on which waifud runs.
    fn waifud(&self) -> Result<&MachineSpec> {
        self.spec.waifud().context("no waifud runs in this lab")
    }

    /// The guard's PID on the host.
    pub fn guard_pid(&self) -> i32 {
        self.guard_pid
    }

    /// The PID, on the host, of the init of `node` (or of another machine, or of "outside").
    ///
    /// # Errors
    /// The machine does not exist, or is off.
    pub fn init_pid(&self, node: &str) -> Result<i32> {
        let name = &self.spec.machine(node)?.name;
        let inits = Pids::read(&self.dir)?.inits;
        let found = inits.into_iter().find(|(running, _)| running == name);
        found
            .map(|(_, pid)| pid)
            .with_context(|| format!("{node} is off"))
    }

    /// A command inside `node` (or another machine, or "outside") as root. Arguments that are paths must be absolute.
    ///
    /// # Errors
    /// The machine does not exist or is off, or `argv` is empty.
    pub fn command<I, S>(&self, node: &str, argv: I) -> Result<Command>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let bin_dir = &self.spec.machine(node)?.bin_dir;
        let mut argv = argv.into_iter().peekable();
        ensure!(argv.peek().is_some(), "no program given");
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.init_pid(node)?))
            .args(["--mount", "--net", "--uts", "--pid", "--"])
            .args(argv)
            .env("PATH", search_path(bin_dir))
            .env("WAIFUD_LAB", &self.spec.name)
            // Their values are paths outside the lab.
            .env_remove("WAIFUD_SOCKET")
            .env_remove("TMPDIR")
            .env_remove("XDG_RUNTIME_DIR");
        Ok(command)
    }

    /// As [`Lab::command`], as the node's user `user` with that user's groups and without capabilities.
    ///
    /// # Errors
    /// As [`Lab::command`].
    pub fn command_as<I, S>(&self, node: &str, user: &str, argv: I) -> Result<Command>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = self.command(node, ["setpriv"])?;
        command
            .args([
                &format!("--reuid={user}"),
                "--init-groups",
                "--bounding-set=-all",
                "--inh-caps=-all",
            ])
            .arg(format!("--regid={user}"))
            .args(["--no-new-privs", "--"])
            .args(argv);
        Ok(command)
    }

    /// Forwards connections to `from`, an address of `node` (or of another machine, or of "outside"), to `to`, as reached
    /// from there, until this process ends.
    ///
    /// # Errors
    /// The machine does not exist or is off, or it cannot listen on `from`.
    pub fn forward(&self, node: &str, from: SocketAddr, to: SocketAddr) -> Result<()> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.init_pid(node)?))
            .with_context(|| format!("cannot open the network namespace of {node}"))?;
        relay::forward(namespace, from, to)
    }

    /// The path on the host of the first node's `path`.
    pub fn path_outside(&self, path: impl AsRef<Path>) -> PathBuf {
        let node = self.nodes().first().copied().unwrap_or(OUTSIDE);
        self.path_outside_of(node, path)
    }

    /// The path on the host of `path` in `node`.
    pub fn path_outside_of(&self, node: &str, path: impl AsRef<Path>) -> PathBuf {
        layout::outside_path(&self.dir, node, path.as_ref())
    }

    /// The environment variables with which processes outside use the lab, in the order of `lab env`. A lab without
    /// waifud has no URL.
    ///
    /// # Errors
    /// The caller may not read the token.
    pub fn env(&self) -> Result<Vec<(String, String)>> {
        let bin_dir = self
            .spec
            .machines
            .get(1)
            .map_or(Path::new("/"), |node| &node.bin_dir);
        let before = std::env::var("PATH").unwrap_or_default();
        let bin = bin_dir.to_string_lossy().into_owned();
        let path = if before.split(':').any(|part| part == bin) {
            before
        } else {
            format!("{bin}:{before}")
        };
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let socket = "/run/waifud/waifud.sock";
        let socket = match self.spec.waifud() {
            Some(machine) => self.path_outside_of(&machine.name, socket),
            None => self.path_outside(socket),
        };
        let mut list = vec![("WAIFUD_SOCKET", text(&socket))];
        if let Some(https) = https::read(&self.dir)? {
            list.extend([
                ("WAIFUD_URL", https.url),
                ("WAIFUD_CA", text(&https.ca)),
                ("WAIFUD_TOKEN", https.token),
            ]);
        }
        list.extend([
            ("WAIFUD_LAB_DIR", text(&self.dir)),
            ("WAIFUD_LAB_NODES", self.nodes().join(" ")),
            ("PATH", path),
        ]);
        let owned = list.into_iter().map(|(key, value)| (key.to_owned(), value));
        Ok(owned.collect())
    }

    /// Stops the lab and returns when its processes have ended and its directory is removed.
    ///
    /// # Errors
    /// Something remains.
    pub fn down(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.owned = false;
        if let Some(mut child) = self.guard.take() {
            stop_guard(&mut child);
        } else if guard::alive(&self.dir) {
            let _ = kill(Pid::from_raw(self.guard_pid), Signal::SIGTERM);
            wait::until("the lab's guard to end", DOWN_LIMIT, || {
                Ok((!guard::alive(&self.dir)).then_some(()))
            })?;
        }
        // The directory still exists only if the guard was killed.
        remove(&self.dir)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = self.end()
        {
            eprintln!(
                "the lab in {} was not removed: {error:#}",
                self.dir.display()
            );
        }
    }
}

fn stop_guard(child: &mut Child) {
    // The guard ends on either. The guard of a lab that stays has no standard input.
    drop(child.stdin.take());
    let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
    let ended = wait::until("the guard", DOWN_LIMIT, || Ok(child.try_wait()?));
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
}
