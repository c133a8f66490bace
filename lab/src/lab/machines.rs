//! Disturbances and links of a lab's machines.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Lab, START_LIMIT};
use crate::control::ServiceState;
use crate::orders::{Answer, Disturbances, Link, Order, order};
use crate::shape::Shape;
use crate::wait;

/// Limit of a command of waifuctl.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

impl Lab {
    /// The machines that are off, and the links that are cut.
    ///
    /// # Errors
    /// The lab's guard does not answer.
    pub fn disturbances(&self) -> Result<Disturbances> {
        match order(&self.dir, &Order::Status)? {
            Answer::Disturbances(disturbances) => Ok(disturbances),
            other => bail!("the lab's guard answered {other:?} to a question for its status"),
        }
    }

    /// Ends all processes of a machine at once, its guests included, as a power cut does. What was written to its files stays,
    /// synced or not. Returns when they have ended.
    ///
    /// # Errors
    /// The machine does not exist or is off already, or a process does not end.
    pub fn kill_machine(&self, machine: &str) -> Result<()> {
        let machine = machine.to_owned();
        self.tell(&Order::Kill { machine })
    }

    /// Boots a machine that was killed: with a new boot id, with empty `/run` and `/tmp`, and with the files of `/etc` and
    /// `/var`. Returns when its services are ready.
    ///
    /// # Errors
    /// The machine does not exist or is on, or a service does not become ready.
    pub fn boot_machine(&self, machine: &str) -> Result<()> {
        self.tell(&Order::Boot {
            machine: machine.to_owned(),
        })?;
        wait::until(&format!("the services of {machine}"), START_LIMIT, || {
            let ready = self.status(machine).is_ok_and(|list| {
                let mut services = list.iter();
                services.all(|entry| entry.state == ServiceState::Ready)
            });
            Ok(ready.then_some(()))
        })
    }

    /// Drops all traffic between two machines, of which one may be "outside", in both directions.
    ///
    /// # Errors
    /// A machine does not exist, or the rules cannot be changed.
    pub fn cut(&self, one: &str, other: &str) -> Result<()> {
        let link = Link::between(one, other)?;
        self.tell(&Order::Cut { link })
    }

    /// Limits and delays the traffic between two machines, of which one may be "outside", and loses a part of it, in each
    /// direction for itself. VLAN tags are lost on a slow link.
    ///
    /// # Errors
    /// A machine does not exist, or the shape is that of a plain link.
    pub fn slow(&self, one: &str, other: &str, shape: Shape) -> Result<()> {
        ensure!(
            !shape.is_plain(),
            "a slow link needs a rate, a delay or a loss"
        );
        let link = Link::between(one, other)?;
        self.tell(&Order::Slow { link, shape })
    }

    /// Undoes [`Lab::cut`] and [`Lab::slow`].
    ///
    /// # Errors
    /// A machine does not exist, or the rules cannot be changed.
    pub fn heal(&self, one: &str, other: &str) -> Result<()> {
        let link = Link::between(one, other)?;
        self.tell(&Order::Heal { link })
    }

    fn tell(&self, what: &Order) -> Result<()> {
        match order(&self.dir, what)? {
            Answer::Done => Ok(()),
            other => bail!("the lab's guard answered {other:?} to an order"),
        }
    }

    /// Returns when waifud lists all nodes as ready, with their capacity.
    ///
    /// # Errors
    /// No waifud runs in the lab, or `limit` has passed. The error contains what waifuctl said last.
    pub fn wait_nodes_ready(&self, limit: Duration) -> Result<()> {
        let waifud = &self.waifud()?.name;
        let mut last = String::new();
        let ready = wait::until("all nodes to be ready", limit, || {
            let words = ["waifuctl", "node", "list", "--json"];
            let output = match wait::output(&mut self.command(waifud, words)?, COMMAND_LIMIT) {
                Ok(output) => output,
                Err(error) => {
                    last = format!("{error:#}");
                    return Ok(None);
                }
            };
            let text = [output.stdout.clone(), output.stderr].concat();
            last = String::from_utf8_lossy(&text).into_owned();
            let nodes: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            Ok(self.all_ready(&nodes).then_some(()))
        });
        ready.with_context(|| format!("waifuctl node list: {last}"))
    }

    /// Chooses what connects the guests of different nodes: `wireguard`, `static` or `none`.
    ///
    /// # Errors
    /// No waifud runs in the lab, or waifuctl fails.
    pub fn set_fabric(&self, fabric: &str) -> Result<()> {
        let waifud = &self.waifud()?.name;
        let words = ["waifuctl", "fabric", "set", fabric];
        wait::run(&mut self.command(waifud, words)?, COMMAND_LIMIT).map(drop)
    }

    fn all_ready(&self, list: &Value) -> bool {
        let items = list.pointer("/items").and_then(Value::as_array);
        self.nodes().iter().all(|name| {
            let mut items = items.into_iter().flatten();
            // A node is ready before it knows its capacity.
            items.any(|item| {
                let cpus = item.pointer("/capacity/cpus").and_then(Value::as_u64);
                item["name"] == *name && item["state"] == "ready" && cpus > Some(0)
            })
        })
    }
}
