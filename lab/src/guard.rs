//! The guard: the one process outside the namespaces. It starts the machines, waits, and cleans up.
//!
//! Its first thread starts all machines. It waits in `poll` for signals, for orders and, if the lab belongs to a process, for
//! the end of its standard input, which closes when that process ends.

use std::fs::File;
use std::io::{Read, stdin};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::setsid;

use crate::machines::Machines;
use crate::options::LabSpec;
use crate::stale::{GUARD_LOCK, lock, remove};
use crate::{control, orders, wait};

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
    let mut machines = Machines::new(dir, &spec);
    let result = control::listen(&orders::socket(dir)).and_then(|listener| {
        machines.start()?;
        watch(&signals, spec.stay, &listener, &mut machines)
    });
    machines.end(&signals);
    remove(dir)?;
    result
}

/// Returns when a stop is requested, or with an error when a machine ends unexpectedly.
fn watch(
    signals: &SignalFd,
    stay: bool,
    listener: &UnixListener,
    machines: &mut Machines<'_>,
) -> Result<()> {
    let owner = stdin();
    loop {
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(owner.as_fd(), PollFlags::POLLIN),
        ];
        let count = if stay { 2 } else { 3 };
        match poll(fds.get_mut(..count).unwrap_or_default(), PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait"),
        }
        if !stay && fds[2].any().unwrap_or(false) && owner.lock().read(&mut [0; 64])? == 0 {
            return Ok(());
        }
        while let Some(signal) = signals.read_signal()? {
            if signal.ssi_signo.cast_signed() != Signal::SIGCHLD as i32 {
                return Ok(());
            }
        }
        if let Some(dead) = machines.dead() {
            bail!("the init of {dead} ended");
        }
        while let Ok((stream, _)) = listener.accept() {
            // A client that disconnects gets no answer. That does not affect the guard.
            let _ = control::serve(&stream, |order| machines.obey(order));
        }
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
