//! Whether the host is shutting down, according to our marker file or to systemd.
//!
//! The marker is in the run directory, which a reboot empties. It contains the boot id, so that a marker which survives a
//! reboot is ignored. `waifud-agentd stop-guests` writes it before it asks the first guest to shut down, and
//! `start-guests` removes it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use tokio::process::Command;
use waifud_agent::interfaces::HostPower;
use waifud_types::{BootId, Digest};

/// What identifies the hardware: UUID and serial numbers from the firmware, by SMBIOS or the device tree. Only root can read
/// them.
const HARDWARE: [&str; 4] = [
    "/sys/class/dmi/id/product_uuid",
    "/sys/class/dmi/id/product_serial",
    "/sys/class/dmi/id/board_serial",
    "/sys/firmware/devicetree/base/serial-number",
];
/// See `proc_sys_kernel(5)`. The kernel generates a new one at each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Exists while systemd is the init system (`sd_booted(3)`).
const SYSTEMD: &str = "/run/systemd/system";
/// The time limit for asking systemd for its state.
const SYSTEMD_LIMIT: Duration = Duration::from_secs(3);

/// This machine.
#[derive(Clone, Debug)]
pub struct NodePower {
    marker: PathBuf,
}

impl NodePower {
    /// The marker is in this run directory.
    pub fn new(run_dir: &Path) -> Self {
        Self {
            marker: run_dir.join("host-stopping"),
        }
    }

    /// Marks the host as shutting down.
    pub fn mark(&self) -> anyhow::Result<()> {
        let write = || {
            if let Some(dir) = self.marker.parent() {
                fs::create_dir_all(dir)?;
            }
            let temporary = self.marker.with_extension("new");
            fs::write(&temporary, fs::read(BOOT_ID)?)?;
            fs::rename(&temporary, &self.marker)
        };
        write().with_context(|| format!("cannot write {}", self.marker.display()))
    }

    /// Removes the mark.
    pub fn clear(&self) -> anyhow::Result<()> {
        match fs::remove_file(&self.marker) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.marker.display()))
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

    fn hardware(&self) -> Option<Digest> {
        hash_of(&HARDWARE.map(Path::new))
    }
}

/// A hash of the files that exist and are not empty; `None` if there is none.
fn hash_of(files: &[&Path]) -> Option<Digest> {
    let mut all = Vec::new();
    for file in files {
        match fs::read(file) {
            Ok(text) if !text.trim_ascii().is_empty() => {
                all.extend_from_slice(file.as_os_str().as_encoded_bytes());
                all.push(0);
                all.extend_from_slice(text.trim_ascii());
                all.push(0);
            }
            _ => {}
        }
    }
    (!all.is_empty()).then(|| Digest::of(&all))
}

/// `systemctl is-system-running` prints `stopping` from the beginning of a shutdown.
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
            tracing::warn!("cannot ask systemd whether the host is shutting down: {error}");
            false
        }
        Err(_) => {
            tracing::warn!("systemd did not report whether the host is shutting down");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_marker_is_valid_only_in_the_boot_that_wrote_it() {
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

    #[test]
    fn hardware_is_identified_by_what_the_firmware_says_and_where() {
        let dir = tempfile::tempdir().unwrap();
        let [uuid, serial] = ["product_uuid", "product_serial"].map(|name| dir.path().join(name));
        let hash = || hash_of(&[uuid.as_path(), serial.as_path()]);
        assert_eq!(hash(), None);
        fs::write(&uuid, " \n").unwrap();
        assert_eq!(hash(), None, "an empty text identifies nothing");
        fs::write(&uuid, "4c4c4544\n").unwrap();
        let first = hash();
        assert!(first.is_some());
        fs::write(&uuid, "4c4c4544").unwrap();
        assert_eq!(hash(), first);
        fs::rename(&uuid, &serial).unwrap();
        assert_ne!(hash(), first);
        fs::write(&uuid, "4c4c4544").unwrap();
        assert_ne!(hash(), first);
    }
}
