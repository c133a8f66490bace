//! Starts the units, if systemd is running.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// The units on a machine with waifud and a node, in start order.
pub const UNITS: [&str; 4] = [
    "waifud.service",
    "waifud-metadatad.service",
    "waifud-agentd.service",
    "waifud-guests.service",
];

/// systemd has its own time limits for starting a unit; this one only prevents an endless wait.
const SYSTEMCTL_TIMEOUT: Duration = Duration::from_mins(3);

/// Whether the machine was booted with systemd (`sd_booted(3)`).
pub fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Starts all units, and enables them for each boot.
pub fn start() -> anyhow::Result<()> {
    systemctl(&["daemon-reload"])?;
    let mut words = vec!["enable", "--now"];
    words.extend(UNITS);
    systemctl(&words)
}

fn systemctl(words: &[&str]) -> anyhow::Result<()> {
    let mut child = Command::new("systemctl")
        .arg("--quiet")
        .args(words)
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run systemctl")?;
    let end = Instant::now() + SYSTEMCTL_TIMEOUT;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= end {
            let _gone_already = child.kill();
            let _reaped = child.wait();
            bail!("systemctl {} timed out", words.join(" "));
        }
        std::thread::park_timeout(Duration::from_millis(50));
    };
    ensure!(
        status.success(),
        "systemctl {} failed; check the log: journalctl -u {}",
        words.join(" "),
        UNITS.join(" -u ")
    );
    Ok(())
}
