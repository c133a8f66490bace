//! The supervisor: starts a node's services in order, restarts those that end, reaps orphans, and stops in reverse
//! order.
//!
//! ```text
//! Waiting ──earlier ones ready──► Running(ready: false) ──ready──► Running(ready: true)
//!                                        │ ends                          │ ends
//!                                        └──────────► BackOff ◄──────────┘        Stop ► Stopped ► Start
//!                                                        └─ time passed ─► Running
//! ```
//!
//! It is PID 1, with one thread, one `poll` over its signals and its control socket, and bounded memory.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::backoff::Backoff;
use crate::control::{self, Reply, Request, ServiceState, ServiceStatus};
use crate::options::{LabSpec, MachineSpec};
use crate::services::{Ready, Service, search_path};
use crate::wait::CHECK_INTERVAL;

/// Time between SIGTERM and SIGKILL of a service when the node stops.
const STOP_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running {
        pid: Pid,
        since: Instant,
        ready: bool,
    },
    BackOff {
        until: Instant,
    },
    Stopped,
}

struct Entry {
    service: Service,
    state: State,
    backoff: Backoff,
    restarts: u32,
    /// It has been ready once, so later services do not wait for it again.
    was_ready: bool,
    /// The state after the current process has ended; `None` to back off.
    next_state: Option<State>,
}

pub(crate) struct Supervisor {
    entries: Vec<Entry>,
    environment: Vec<(String, String)>,
    /// The entry that is being stopped and the time at which it is killed; set when the node stops.
    stopping: Option<(usize, Instant)>,
}

impl Supervisor {
    pub(crate) fn new(services: Vec<Service>, spec: &LabSpec, node: &MachineSpec) -> Self {
        let mut environment = vec![
            ("PATH".to_owned(), search_path(&node.bin_dir)),
            ("LANG".to_owned(), "C.UTF-8".to_owned()),
            ("NO_COLOR".to_owned(), "1".to_owned()),
            ("WAIFUD_LAB".to_owned(), spec.name.clone()),
        ];
        environment.extend(spec.env.iter().cloned());
        let entries = services
            .into_iter()
            .map(|service| Entry {
                service,
                state: State::Waiting,
                backoff: Backoff::default(),
                restarts: 0,
                was_ready: false,
                next_state: None,
            })
            .collect();
        Self {
            entries,
            environment,
            stopping: None,
        }
    }

    /// Runs until a signal requests a stop and all services have ended.
    pub(crate) fn run(mut self, signals: &SignalFd, listener: &UnixListener) -> Result<()> {
        loop {
            self.reap();
            if self.stopping.is_some() {
                if self.stop_next() {
                    return Ok(());
                }
            } else {
                self.start_due();
                self.update_readiness();
            }
            let mut fds = [
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, self.next_check()) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait"),
            }
            while let Some(signal) = signals.read_signal()? {
                if signal.ssi_signo.cast_signed() != Signal::SIGCHLD as i32
                    && self.stopping.is_none()
                {
                    self.stopping = Some((self.entries.len(), Instant::now()));
                }
            }
            while let Ok((stream, _)) = listener.accept() {
                // A client that disconnects gets no answer. That does not affect the supervisor.
                let _ = control::serve(&stream, |request| self.answer(request));
            }
        }
    }

    /// Reaps every child that ended: services and their orphans.
    fn reap(&mut self) {
        while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
            let Some(dead) = status.pid() else { continue };
            for entry in &mut self.entries {
                if let State::Running { pid, since, .. } = entry.state
                    && pid == dead
                {
                    eprintln!("{} ended: {status:?}", entry.service.name);
                    entry.state = entry.next_state.take().unwrap_or_else(|| State::BackOff {
                        until: Instant::now() + entry.backoff.after(since.elapsed()),
                    });
                }
            }
        }
    }

    fn start_due(&mut self) {
        let mut earlier_ready = true;
        for entry in &mut self.entries {
            let due = match entry.state {
                State::Waiting => earlier_ready,
                State::BackOff { until } => Instant::now() >= until,
                State::Running { .. } | State::Stopped => false,
            };
            if due {
                if entry.state != State::Waiting {
                    entry.restarts += 1;
                }
                entry.state = match spawn(&entry.service, &self.environment) {
                    Ok(pid) => State::Running {
                        pid,
                        since: Instant::now(),
                        ready: false,
                    },
                    Err(error) => {
                        eprintln!("{}: {error:#}", entry.service.name);
                        State::BackOff {
                            until: Instant::now() + entry.backoff.after(Duration::ZERO),
                        }
                    }
                };
            }
            earlier_ready &= entry.was_ready;
        }
    }

    fn update_readiness(&mut self) {
        for entry in &mut self.entries {
            if let State::Running { ready, .. } = &mut entry.state
                && !*ready
                && is_ready(&entry.service.ready)
            {
                *ready = true;
                entry.was_ready = true;
            }
        }
        // The next service starts without waiting for the next check.
        if self
            .entries
            .iter()
            .any(|entry| entry.state == State::Waiting)
        {
            self.start_due();
        }
    }

    /// The time of the next check of conditions that no event signals.
    fn next_check(&self) -> PollTimeout {
        let now = Instant::now();
        let stopping = self
            .stopping
            .map(|(_, limit)| limit.saturating_duration_since(now).max(CHECK_INTERVAL));
        let next = self.entries.iter().filter_map(|entry| match entry.state {
            State::Running { ready: false, .. } => Some(CHECK_INTERVAL),
            State::BackOff { until } => Some(until.saturating_duration_since(now)),
            _ => None,
        });
        match next.chain(stopping).min() {
            None => PollTimeout::NONE,
            // Rounded up: a wait of less than a millisecond would be a busy loop.
            Some(time) => PollTimeout::from(u16::try_from(time.as_millis() + 1).unwrap_or(60_000)),
        }
    }

    /// One step of the ordered stop; true when all services are stopped.
    fn stop_next(&mut self) -> bool {
        let Some((index, limit)) = self.stopping else {
            return false;
        };
        if let Some(entry) = self.entries.get(index)
            && let State::Running { pid, .. } = entry.state
        {
            if Instant::now() >= limit {
                eprintln!("{} did not stop in time", entry.service.name);
                let _ = kill(pid, Signal::SIGKILL);
            }
            return false;
        }
        let Some(next) = index.checked_sub(1) else {
            return true;
        };
        self.stopping = Some((next, Instant::now() + STOP_LIMIT));
        match self.entries.get(next).map(|entry| entry.state) {
            Some(State::Running { pid, .. }) => {
                let _ = kill(pid, Signal::SIGTERM);
                // A process stopped by SIGSTOP reacts to no other signal.
                let _ = kill(pid, Signal::SIGCONT);
                false
            }
            _ => self.stop_next(),
        }
    }

    fn answer(&mut self, request: Request) -> Reply {
        let (name, action) = match request {
            Request::Status => {
                return Reply::Services(self.entries.iter().map(Entry::status).collect());
            }
            Request::Kill { service, signal } => (service, Action::Kill(signal)),
            Request::Restart { service } => (service, Action::Restart),
            Request::Stop { service } => (service, Action::Stop),
            Request::Start { service } => (service, Action::Start),
        };
        match self
            .entries
            .iter_mut()
            .find(|entry| entry.service.name == name)
        {
            None => Reply::Refused(format!("unknown service {name:?}")),
            Some(entry) => entry.act(action),
        }
    }
}

#[derive(Clone, Copy)]
enum Action {
    Kill(i32),
    Restart,
    Stop,
    Start,
}

impl Entry {
    fn status(&self) -> ServiceStatus {
        let (state, pid) = match self.state {
            State::Waiting => (ServiceState::Waiting, None),
            State::Running {
                pid, ready: false, ..
            } => (ServiceState::Starting, Some(pid.as_raw())),
            State::Running {
                pid, ready: true, ..
            } => (ServiceState::Ready, Some(pid.as_raw())),
            State::BackOff { .. } => (ServiceState::BackingOff, None),
            State::Stopped => (ServiceState::Stopped, None),
        };
        ServiceStatus {
            name: self.service.name.to_owned(),
            state,
            pid,
            restarts: self.restarts,
        }
    }

    fn act(&mut self, action: Action) -> Reply {
        let now = State::BackOff {
            until: Instant::now(),
        };
        match (action, self.state) {
            (Action::Kill(signal), State::Running { pid, .. }) => send(pid, signal),
            (Action::Kill(_), _) => Reply::Refused(format!("{} is not running", self.service.name)),
            (Action::Restart, State::Running { pid, .. }) => {
                self.next_state = Some(now);
                send(pid, Signal::SIGTERM as i32)
            }
            (Action::Stop, State::Running { pid, .. }) => {
                self.next_state = Some(State::Stopped);
                send(pid, Signal::SIGTERM as i32)
            }
            (Action::Stop, _) => {
                self.state = State::Stopped;
                Reply::Done
            }
            // A start cancels a stop that is in progress.
            (Action::Start, State::Running { .. }) => {
                self.next_state = self.next_state.map(|_| now);
                Reply::Done
            }
            (Action::Restart | Action::Start, _) => {
                self.state = now;
                Reply::Done
            }
        }
    }
}

fn send(pid: Pid, signal: i32) -> Reply {
    let sent = Signal::try_from(signal).and_then(|signal| kill(pid, signal));
    match sent {
        Ok(()) => Reply::Done,
        Err(error) => Reply::Refused(format!("cannot send signal {signal}: {error}")),
    }
}

fn spawn(service: &Service, environment: &[(String, String)]) -> Result<Pid> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(&service.log)
        .with_context(|| format!("cannot open {}", service.log.display()))?;
    let words = service.command();
    let (program, arguments) = words.split_first().context("the service has no command")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(environment.iter().map(|(key, value)| (key, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // SAFETY: one system call that uses no memory of the parent, safe between fork and exec. The supervisor blocks its
    // signals because it reads them from a descriptor. A service must not inherit the blocked signals.
    unsafe {
        command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?));
    }
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    Ok(Pid::from_raw(child.id().cast_signed()))
}

fn is_ready(ready: &Ready) -> bool {
    match ready {
        Ready::Started => true,
        Ready::Socket(path) => accepts(path),
    }
}

fn accepts(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}
