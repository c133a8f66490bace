//! A node's PID 1: sets up file system and network, then supervises the services.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::accounts::Caller;
use crate::options::LabSpec;
use crate::supervisor::Supervisor;
use crate::{control, guard, mounts, net, services};

/// Runs the node until a stop is requested. All processes of the node end with this one.
pub(crate) fn run(dir: &Path, name: &str) -> Result<()> {
    if std::process::id() != 1 {
        bail!("lab-init must run as PID 1 of a lab's node");
    }
    // The guard may have died before PDEATHSIG was set. From here on the kernel ends this process with the guard.
    if !guard::alive(dir) {
        bail!("the guard of the lab has ended");
    }
    let signals = guard::signals()?;
    let spec = LabSpec::read(dir)?;
    let node = spec.machine(name)?;
    let caller = Caller::look();
    let listener = control::listen(&control::socket(dir, name))?;

    mounts::make(dir, name, &spec.visible)?;
    std::env::set_current_dir("/")?;
    nix::unistd::sethostname(name).context("cannot set the host name")?;
    net::configure(node)?;

    Supervisor::new(services::of(node, caller), &spec, node).run(&signals, &listener)
}
