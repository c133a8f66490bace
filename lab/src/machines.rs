//! The guard's machines: starts, kills and boots them, and cuts the links between them.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};

use crate::links::{Differences, Links, Place};
use crate::options::{LabSpec, MachineSpec};
use crate::orders::{Answer, Disturbances, Link, Order};
use crate::pids::Pids;
use crate::relay::Relay;
use crate::{layout, net, spawn, wait};

/// Time for the inits to stop their services before they are killed.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Time for the kernel to end the processes of a killed machine.
const KILL_LIMIT: Duration = Duration::from_mins(1);

/// All machines of a lab.
pub(crate) struct Machines<'a> {
    dir: &'a Path,
    spec: &'a LabSpec,
    /// In the order of `spec`; the first is outside.
    list: Vec<Machine<'a>>,
    links: Links,
    relay: Option<Relay>,
}

struct Machine<'a> {
    spec: &'a MachineSpec,
    /// `None` while it is off.
    init: Option<Pid>,
}

impl<'a> Machines<'a> {
    /// None of them runs yet.
    pub(crate) fn new(dir: &'a Path, spec: &'a LabSpec) -> Self {
        let machines = spec.machines.iter();
        Self {
            dir,
            spec,
            list: machines.map(|spec| Machine { spec, init: None }).collect(),
            links: Links::default(),
            relay: None,
        }
    }

    /// Starts all machines, and then the relay.
    pub(crate) fn start(&mut self) -> Result<()> {
        for machine in &mut self.list {
            machine.init = Some(spawn::init(self.dir, &machine.spec.name)?);
        }
        let outside = self.outside()?;
        for machine in self.list.iter().skip(1) {
            let init = machine.init.context("a machine has ended")?;
            net::connect(machine.spec, init.as_raw(), outside)?;
        }
        if self.spec.waifud().is_some() {
            self.relay = Some(Relay::start(self.dir)?);
        }
        self.lead_relay()?;
        self.write_pids()
    }

    /// The init of "outside".
    fn outside(&self) -> Result<i32> {
        let first = self.list.first().and_then(|machine| machine.init);
        let first = first.context("the lab has no namespace \"outside\"")?;
        Ok(first.as_raw())
    }

    /// Follows waifud's machine.
    fn lead_relay(&self) -> Result<()> {
        let mut machines = self.list.iter();
        let waifuds = machines.find(|machine| machine.spec.role.has_waifud());
        match (&self.relay, waifuds) {
            (Some(relay), Some(machine)) => relay.lead_to(machine.init),
            _ => Ok(()),
        }
    }

    fn write_pids(&self) -> Result<()> {
        let running = |machine: &Machine<'_>| {
            let init = machine.init?.as_raw();
            Some((machine.spec.name.clone(), init))
        };
        Pids {
            guard: getpid().as_raw(),
            inits: self.list.iter().filter_map(running).collect(),
        }
        .write(self.dir)
    }

    /// A machine that ended although no order said so.
    pub(crate) fn dead(&self) -> Option<&str> {
        let mut machines = self.list.iter();
        let dead = machines.find(|machine| machine.init.is_some_and(reaped));
        dead.map(|machine| machine.spec.name.as_str())
    }

    /// Carries out an order.
    pub(crate) fn obey(&mut self, order: Order) -> Answer {
        let result = match order {
            Order::Status => return Answer::Disturbances(self.disturbances()),
            Order::Kill { machine } => self.kill(&machine),
            Order::Boot { machine } => self.boot(&machine),
            Order::Cut { link } => self.change_link(&link, |to| {
                to.cut.insert(link.clone());
            }),
            Order::Slow { link, shape } => self.change_link(&link, |to| {
                to.slow.insert(link.clone(), shape);
            }),
            Order::Heal { link } => self.change_link(&link, |to| {
                to.cut.remove(&link);
                to.slow.remove(&link);
            }),
        };
        match result {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Refused(format!("{error:#}")),
        }
    }

    fn disturbances(&self) -> Disturbances {
        let off = self.list.iter().filter(|machine| machine.init.is_none());
        let slow = &self.links.differences().slow;
        Disturbances {
            off: off.map(|machine| machine.spec.name.clone()).collect(),
            cut: self.links.differences().cut.clone(),
            slow: slow.clone().into_iter().collect(),
        }
    }

    fn index(&self, name: &str) -> Result<usize> {
        let spec = self.spec.machine(name)?;
        let found = self.list.iter().position(|it| it.spec.name == spec.name);
        found.context("the machine is not in the list")
    }

    /// A power cut: all processes of the machine end at once, guests included.
    fn kill(&mut self, name: &str) -> Result<()> {
        let index = self.index(name)?;
        ensure!(
            index != 0,
            "{name} is the network of the lab and cannot be killed"
        );
        let outside = self.outside()?;
        let machine = self.list.get_mut(index).context("no such machine")?;
        let Some(init) = machine.init else {
            bail!("{name} is off already");
        };
        end_at_once(init).with_context(|| format!("{name} did not end"))?;
        machine.init = None;
        self.links.release(name);
        self.write_pids()?;
        self.lead_relay()?;
        let machine = self.list.get(index).context("no such machine")?;
        net::disconnect(machine.spec, outside)
    }

    /// Starts the machine as after a power cut.
    fn boot(&mut self, name: &str) -> Result<()> {
        let index = self.index(name)?;
        let outside = self.outside()?;
        let machine = self.list.get_mut(index).context("no such machine")?;
        ensure!(machine.init.is_none(), "{name} is running");
        layout::power_cycle(self.dir, self.spec, machine.spec)?;
        let init = spawn::init(self.dir, name)?;
        if let Err(error) = net::connect(machine.spec, init.as_raw(), outside) {
            end_at_once(init)?;
            return Err(error);
        }
        machine.init = Some(init);
        self.lead_relay()?;
        self.write_pids()?;
        let place = place(self.dir, self.spec, &self.list);
        self.links.apply(&place)
    }

    fn change_link(&mut self, link: &Link, change: impl FnOnce(&mut Differences)) -> Result<()> {
        for end in link.ends() {
            self.index(end)?;
        }
        let mut to = self.links.differences().clone();
        change(&mut to);
        let place = place(self.dir, self.spec, &self.list);
        self.links.change(to, &place)
    }

    /// Stops all machines, kills those that do not stop, and returns when all have ended. `wait` on a PID 1 returns after
    /// the kernel has ended all processes in its namespace.
    pub(crate) fn end(&mut self, signals: &SignalFd) {
        let limit = Instant::now() + STOP_LIMIT;
        let mut inits: Vec<_> = self.list.iter().filter_map(|it| it.init).collect();
        for pid in &inits {
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
                for pid in &inits {
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
}

fn place<'a>(dir: &'a Path, spec: &'a LabSpec, list: &[Machine<'a>]) -> Place<'a> {
    let on = list.iter().filter_map(|machine| {
        let init = machine.init?.as_raw();
        Some((machine.spec.name.as_str(), init))
    });
    Place {
        dir,
        spec,
        inits: on.collect(),
    }
}

/// Kills an init and returns when the kernel has ended all processes in its namespace.
fn end_at_once(init: Pid) -> Result<()> {
    let _ = kill(init, Signal::SIGKILL);
    wait::until("the machine's processes to end", KILL_LIMIT, || {
        Ok(reaped(init).then_some(()))
    })
}

/// Whether this child has ended. Reaps it if needed.
fn reaped(pid: Pid) -> bool {
    match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
        Ok(status) => status.pid().is_some(),
        Err(error) => error == Errno::ECHILD,
    }
}
