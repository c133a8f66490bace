//! The guard: the one process outside the namespaces. It starts the inits, waits, and cleans up.
//!
//! Its first thread starts the inits before there are other threads. Then it waits in `poll` for signals and, if the
//! lab belongs to a process, for the end of its standard input, which closes when that process ends.

use std::fs::File;
use std::io::{Read, stdin};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid, setsid};
use serde::{Deserialize, Serialize};

use crate::options::LabSpec;
use crate::stale::{GUARD_LOCK, lock, remove};
use crate::{net, relay, spawn, wait};

/// Time for the inits to stop their services before they are killed.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// The PIDs of the lab's processes on the machine, in `pids.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Pids {
    pub guard: i32,
    /// Node name and PID of its init, "outside" first.
    pub inits: Vec<(String, i32)>,
}

impl Pids {
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("pids.json");
        let text =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    fn write(&self, dir: &Path) -> Result<()> {
        // Replaced by a rename, so that readers never see an incomplete file.
        let new = dir.join("pids.json.new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(new, dir.join("pids.json"))?;
        Ok(())
    }
}

/// Runs the lab in `dir` until it ends for any reason, and removes everything that belongs to it.
pub(crate) fn run(dir: &Path) -> Result<()> {
    // Ctrl-C in a terminal is for the caller, which then stops the guard.
    let _ = setsid();
    let signals = signals()?;
    // A process that checks whether the guard runs holds the lock for a moment.
    let _lock = wait::until(
        "the lock of the lab's guard",
        Duration::from_secs(2),
        || lock(dir, GUARD_LOCK),
    )?;
    let spec = LabSpec::read(dir)?;
    let mut inits = Vec::new();
    let result = start(dir, &spec, &mut inits).and_then(|()| watch(&signals, spec.stay, &inits));
    end(&mut inits, &signals);
    remove(dir)?;
    result
}

fn start(dir: &Path, spec: &LabSpec, inits: &mut Vec<Pid>) -> Result<()> {
    for node in &spec.nodes {
        inits.push(spawn::init(dir, &node.name)?);
    }
    let outside = inits
        .first()
        .context("the lab has no namespace \"outside\"")?
        .as_raw();
    for (node, pid) in spec.nodes.iter().zip(inits.iter()).skip(1) {
        net::connect(node, pid.as_raw(), outside)?;
    }
    let with_waifud = spec.nodes.iter().position(|node| node.daemons);
    if let Some(init) = with_waifud.and_then(|index| inits.get(index)) {
        relay::start(dir, *init)?;
    }
    let names = spec.nodes.iter().map(|node| node.name.clone());
    Pids {
        guard: getpid().as_raw(),
        inits: names.zip(inits.iter().map(|pid| pid.as_raw())).collect(),
    }
    .write(dir)
}

/// Returns when a stop is requested, or with an error when an init ends unexpectedly.
fn watch(signals: &SignalFd, stay: bool, inits: &[Pid]) -> Result<()> {
    let owner = stdin();
    loop {
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(owner.as_fd(), PollFlags::POLLIN),
        ];
        let count = if stay { 1 } else { 2 };
        match poll(fds.get_mut(..count).unwrap_or_default(), PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait"),
        }
        if !stay && fds[1].any().unwrap_or(false) && owner.lock().read(&mut [0; 64])? == 0 {
            return Ok(());
        }
        while let Some(signal) = signals.read_signal()? {
            if signal.ssi_signo.cast_signed() != Signal::SIGCHLD as i32 {
                return Ok(());
            }
        }
        if let Some(dead) = inits.iter().find(|pid| reaped(**pid)) {
            bail!("the init with PID {dead} ended");
        }
    }
}

/// Whether this child has ended. Reaps it if needed.
fn reaped(pid: Pid) -> bool {
    match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
        Ok(status) => status.pid().is_some(),
        Err(error) => error == Errno::ECHILD,
    }
}

/// Stops all inits, kills those that do not stop, and returns when all have ended. `wait` on a PID 1 returns after the
/// kernel has ended all processes in its namespace.
fn end(inits: &mut Vec<Pid>, signals: &SignalFd) {
    let limit = Instant::now() + STOP_LIMIT;
    for pid in inits.iter() {
        let _ = kill(*pid, Signal::SIGTERM);
    }
    let mut killed = false;
    loop {
        inits.retain(|pid| !reaped(*pid));
        if inits.is_empty() {
            return;
        }
        let left = limit.saturating_duration_since(Instant::now());
        if left.is_zero() && !killed {
            killed = true;
            for pid in inits.iter() {
                let _ = kill(*pid, Signal::SIGKILL);
            }
        }
        let time = PollTimeout::from(
            u16::try_from(left.as_millis())
                .unwrap_or(60_000)
                .clamp(10, 1000),
        );
        let _ = poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], time);
        while let Ok(Some(_)) = signals.read_signal() {}
    }
}

/// A descriptor for the signals of a guard or an init.
pub(crate) fn signals() -> Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
    ] {
        mask.add(signal);
    }
    mask.thread_block().context("cannot block signals")?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot create a descriptor for signals")
}

/// Whether the guard of the lab in `dir` is running.
pub(crate) fn alive(dir: &Path) -> bool {
    crate::stale::held(dir, GUARD_LOCK)
}

/// Opens the guard's log for a new guard.
pub(crate) fn log(dir: &Path) -> Result<File> {
    File::options()
        .create(true)
        .append(true)
        .open(dir.join("guard.log"))
        .context("cannot open the guard's log")
}
