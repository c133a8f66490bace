//! The services of a lab's machines.
//!
//! A service is named `SERVICE` if only one machine has it, and `MACHINE/SERVICE` otherwise.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::{Lab, START_LIMIT};
use crate::control::{Reply, Request, ServiceState, ServiceStatus, ask};
use crate::{services, wait};

/// A service of a machine.
struct Place {
    machine: String,
    service: String,
}

impl Place {
    fn new(machine: &str, service: &str) -> Self {
        Self {
            machine: machine.to_owned(),
            service: service.to_owned(),
        }
    }
}

impl Lab {
    /// The services of `node` (or of another machine).
    ///
    /// # Errors
    /// The machine does not answer, or is off.
    pub fn status(&self, node: &str) -> Result<Vec<ServiceStatus>> {
        match ask(&self.dir, node, &Request::Status)? {
            Reply::Services(list) => Ok(list),
            other => bail!("{node} answered {other:?} to a question for its status"),
        }
    }

    /// The PID, on the host, of `service`; `None` if it is not running.
    ///
    /// # Errors
    /// The node does not answer, or has no such service.
    pub fn pid_of(&self, service: &str) -> Result<Option<i32>> {
        let node = self.find(service)?.machine;
        let inside = self.one(service)?.pid;
        inside.map_or(Ok(None), |inside| host_pid(self.init_pid(&node)?, inside))
    }

    /// Sends `signal` to `service`. The supervisor restarts it if it ends.
    ///
    /// # Errors
    /// The service is not running, or does not exist.
    pub fn kill(&self, service: &str, signal: Signal) -> Result<()> {
        self.order(
            |service| Request::Kill {
                service,
                signal: signal as i32,
            },
            service,
        )
    }

    /// Stops `service` with SIGTERM and starts it again. Returns when it is ready.
    ///
    /// # Errors
    /// The service does not exist, or does not become ready.
    pub fn restart(&self, service: &str) -> Result<()> {
        let before = self.one(service)?.restarts;
        self.order(|service| Request::Restart { service }, service)?;
        wait::until(
            &format!("{service} to be started again"),
            START_LIMIT,
            || {
                let now = self.one(service)?;
                Ok((now.restarts > before && now.state == ServiceState::Ready).then_some(()))
            },
        )
    }

    /// Stops `service` until [`Lab::start`]. Returns when it has ended.
    ///
    /// # Errors
    /// The service does not exist, or does not end.
    pub fn stop(&self, service: &str) -> Result<()> {
        self.order(|service| Request::Stop { service }, service)?;
        wait::until(&format!("{service} to stop"), START_LIMIT, || {
            Ok((self.one(service)?.state == ServiceState::Stopped).then_some(()))
        })
    }

    /// Starts `service` after [`Lab::stop`], or ends its back-off. Returns when it is ready.
    ///
    /// # Errors
    /// The service does not exist, or does not become ready.
    pub fn start(&self, service: &str) -> Result<()> {
        self.order(|service| Request::Start { service }, service)?;
        wait::until(&format!("{service} to be ready"), START_LIMIT, || {
            Ok((self.one(service)?.state == ServiceState::Ready).then_some(()))
        })
    }

    /// The state of `service`.
    fn one(&self, service: &str) -> Result<ServiceStatus> {
        let Place { machine, service } = self.find(service)?;
        let found = self
            .status(&machine)?
            .into_iter()
            .find(|entry| entry.name == service);
        found.with_context(|| format!("{machine} has no service {service:?}"))
    }

    fn order(&self, request: impl FnOnce(String) -> Request, service: &str) -> Result<()> {
        let Place { machine, service } = self.find(service)?;
        ask(&self.dir, &machine, &request(service)).map(|_| ())
    }

    /// The machine of `service`: `MACHINE/SERVICE`, or the name of a service that only one machine has.
    fn find(&self, service: &str) -> Result<Place> {
        if let Some((machine, service)) = service.split_once('/') {
            self.spec.machine(machine)?;
            return Ok(Place::new(machine, service));
        }
        let machines = self.spec.machines.iter();
        let with_it: Vec<_> = machines
            .filter(|machine| services::names(machine).contains(&service))
            .map(|machine| machine.name.as_str())
            .collect();
        match with_it.as_slice() {
            [machine] => Ok(Place::new(machine, service)),
            [] => bail!("no machine of the lab has a service {service:?}"),
            [first, ..] => bail!(
                "{service} runs on {}: say which one, for example {first}/{service}",
                with_it.join(", ")
            ),
        }
    }

    /// Returns when every service of every machine that is on is ready.
    ///
    /// # Errors
    /// `limit` has passed. The error contains the state of each service.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        let mut last = String::new();
        let ready = wait::until("the lab's services", limit, || {
            let unready = self.unready();
            last = unready.join(", ");
            Ok(unready.is_empty().then_some(()))
        });
        ready.with_context(|| format!("not ready: {last}"))
    }

    pub(super) fn unready(&self) -> Vec<String> {
        let Ok(disturbances) = self.disturbances() else {
            return vec!["the lab's guard (no answer)".to_owned()];
        };
        let mut unready = Vec::new();
        let machines = self.spec.machines.iter();
        for machine in machines.filter(|machine| !disturbances.off.contains(&machine.name)) {
            match self.status(&machine.name) {
                Err(_) => unready.push(format!("{} (no answer)", machine.name)),
                Ok(list) => unready.extend(
                    list.iter()
                        .filter(|entry| entry.state != ServiceState::Ready)
                        .map(|entry| {
                            format!(
                                "{}/{} ({:?}, {} restarts)",
                                machine.name, entry.name, entry.state, entry.restarts
                            )
                        }),
                ),
            }
        }
        unready
    }
}

/// The PID in this namespace of the process with PID `inside` in the namespace of `init`.
fn host_pid(init: i32, inside: i32) -> Result<Option<i32>> {
    let namespace =
        fs::read_link(format!("/proc/{init}/ns/pid")).context("the node's init has ended")?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        if fs::read_link(entry.path().join("ns/pid")).ok().as_ref() != Some(&namespace) {
            continue;
        }
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let innermost = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))
            .and_then(|pids| pids.split_whitespace().last()?.parse::<i32>().ok());
        if innermost == Some(inside) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}
