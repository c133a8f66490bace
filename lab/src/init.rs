//! A node's PID 1: makes the node's view, its network, and supervises its services.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::accounts::Machine;
use crate::options::LabSpec;
use crate::supervisor::Supervisor;
use crate::{control, guard, mounts, net, services};

/// Runs the node until it is told to stop. Everything in the node ends when this process does.
pub(crate) fn run(dir: &Path, name: &str) -> Result<()> {
    if std::process::id() != 1 {
        bail!("lab-init is for PID 1 of a lab's node");
    }
    // The guard may have died before the kernel was told to kill us with it; from here on it would be.
    if !guard::alive(dir) {
        bail!("the lab has no guard");
    }
    let signals = guard::signals()?;
    let spec = LabSpec::read(dir)?;
    let node = spec.node(name)?;
    let machine = Machine::look();

    let socket = control::socket(dir, name);
    let listener = UnixListener::bind(&socket)
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;

    mounts::make(dir, name, &spec.visible)?;
    std::env::set_current_dir("/")?;
    nix::unistd::sethostname(name).context("cannot set the host name")?;
    net::configure(node)?;

    Supervisor::new(services::of(node, machine), &spec, node).run(&signals, &listener)
}
