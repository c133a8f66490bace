//! `waifud-agentd stop-guests`, for the unit that systemd stops when the host shuts down.

use std::time::Duration;

use anyhow::{Context, bail};
use waifud_agent::shutdown::{self, Stopped};
use waifud_hypervisor::libvirt::LibvirtHypervisor;

use crate::assembly;
use crate::config::Config;
use crate::power::NodePower;

/// Marks the host as shutting down and stops every guest. Needs neither waifud nor a running agent.
pub async fn stop_guests(config: &Config, grace: Duration) -> anyhow::Result<()> {
    // First, so that a running agent does not mistake the guests for ones that powered themselves off, and starts none.
    NodePower::new(&config.run_dir).mark()?;
    let libvirt = LibvirtHypervisor::connect(assembly::libvirt(config, None))?;
    let priorities = shutdown::priorities(&config.state_dir);
    let stopped = shutdown::stop_guests(libvirt.as_ref(), &priorities, grace)
        .await
        .context("cannot stop the guests")?;
    for guest in &stopped {
        println!("{}", line(guest));
    }
    let left = stopped.iter().filter(|guest| guest.error.is_some()).count();
    if left > 0 {
        bail!("{left} guests could not be stopped");
    }
    Ok(())
}

fn line(guest: &Stopped) -> String {
    let how = match (&guest.error, guest.clean) {
        (Some(error), _) => format!("failed to stop: {error}"),
        (None, true) => "shut down".to_owned(),
        (None, false) => "did not shut down in time; forced off".to_owned(),
    };
    format!("{} (priority {}): {how}", guest.name, guest.priority)
}
