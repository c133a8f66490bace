//! Starting the units, where there is systemd.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// What runs on a machine with waifud and a node, in the order in which it starts.
pub const UNITS: [&str; 4] = [
    "waifud.service",
    "waifud-metadatad.service",
    "waifud-agentd.service",
    "waifud-guests.service",
];

/// systemd starts a unit within its own limits; this only keeps us from waiting for ever.
const LIMIT: Duration = Duration::from_mins(3);

/// Whether systemd runs this machine (`sd_booted(3)`).
pub fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Starts all units, now and at each boot.
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
        .context("systemctl can't be run")?;
    let end = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= end {
            let _gone_already = child.kill();
            let _reaped = child.wait();
            bail!("systemctl {} takes too long", words.join(" "));
        }
        std::thread::park_timeout(Duration::from_millis(50));
    };
    ensure!(
        status.success(),
        "systemctl {} failed; look at: journalctl -u waifud -u waifud-agentd",
        words.join(" ")
    );
    Ok(())
}
