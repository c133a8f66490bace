//! Whether the host is going down: by our own word, or by systemd's.
//!
//! Our word is a file below the run directory, which a reboot empties; it names the boot that it was written in, so
//! that one which survived says nothing about the next. `waifud-agentd stop-guests` writes it before the first guest is
//! asked, and `start-guests` removes it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use tokio::process::Command;
use waifud_agent::interfaces::HostPower;
use waifud_types::BootId;

/// `proc_sys_kernel(5)`: another one at each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// There while systemd is the init system (`sd_booted(3)`).
const SYSTEMD: &str = "/run/systemd/system";
/// How long systemd may take to say how it is.
const SYSTEMD_LIMIT: Duration = Duration::from_secs(3);

/// This machine.
#[derive(Clone, Debug)]
pub struct NodePower {
    marker: PathBuf,
}

impl NodePower {
    /// Its marker is in the run directory.
    pub fn new(run_dir: &Path) -> Self {
        Self {
            marker: run_dir.join("host-stopping"),
        }
    }

    /// The host goes down from now on.
    pub fn mark(&self) -> anyhow::Result<()> {
        let write = || {
            if let Some(dir) = self.marker.parent() {
                fs::create_dir_all(dir)?;
            }
            let beside = self.marker.with_extension("new");
            fs::write(&beside, fs::read(BOOT_ID)?)?;
            fs::rename(&beside, &self.marker)
        };
        write().with_context(|| format!("{} can't be written", self.marker.display()))
    }

    /// It does not, or no longer.
    pub fn clear(&self) -> anyhow::Result<()> {
        match fs::remove_file(&self.marker) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{} can't be removed", self.marker.display()))
            }
            _ => Ok(()),
        }
    }

    fn is_marked(&self) -> bool {
        match (fs::read(&self.marker), fs::read(BOOT_ID)) {
            (Ok(marked), Ok(boot)) => marked == boot,
            _ => false,
        }
    }
}

#[async_trait]
impl HostPower for NodePower {
    async fn is_stopping(&self) -> bool {
        self.is_marked() || systemd_is_stopping().await
    }

    fn boot_id(&self) -> Option<BootId> {
        fs::read_to_string(BOOT_ID).ok()?.trim().parse().ok()
    }
}

/// `systemctl is-system-running` says `stopping` from the moment that a shutdown is begun.
async fn systemd_is_stopping() -> bool {
    if !Path::new(SYSTEMD).exists() {
        return false;
    }
    let asked = Command::new("systemctl")
        .arg("is-system-running")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(SYSTEMD_LIMIT, asked).await {
        Ok(Ok(output)) => output.stdout.trim_ascii() == b"stopping",
        Ok(Err(error)) => {
            tracing::warn!("systemctl can't be asked whether the host goes down: {error}");
            false
        }
        Err(_) => {
            tracing::warn!("systemd did not say whether the host goes down");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_marker_counts_for_the_boot_that_it_was_written_in() {
        let dir = tempfile::tempdir().unwrap();
        let power = NodePower::new(&dir.path().join("run"));
        assert!(!power.is_marked());
        power.mark().unwrap();
        assert!(power.is_stopping().await);
        fs::write(&power.marker, "of another boot\n").unwrap();
        assert!(!power.is_marked());
        power.clear().unwrap();
        power.clear().unwrap();
        assert!(!power.is_marked());
    }
}
