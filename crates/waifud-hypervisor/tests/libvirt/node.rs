//! A node with libvirtd, a hypervisor that is connected to it, and changes of its domains without waifud.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use waifud_hypervisor::conformance::{ExternalChanges, diskless_spec};
use waifud_hypervisor::libvirt::{LibvirtConfig, LibvirtHypervisor};
use waifud_hypervisor::{DomainDisk, DomainEvent, DomainEventKind, DomainSpec, Hypervisor};
use waifud_lab::{Lab, LabOptions, testing};
use waifud_types::{ByteSize, DiskFormat, InstanceId, VolumeSource};

/// The user and group id of `libvirt-qemu` in Debian's libvirt packages.
pub const QEMU: u32 = 64_055;
pub const NODE: &str = "alder";
/// The time limit for a condition on a busy machine.
pub const DEADLINE: Duration = Duration::from_mins(1);

pub struct Node {
    pub lab: Lab,
    pub hypervisor: Arc<LibvirtHypervisor>,
}

impl Node {
    /// `None` if the machine cannot run a lab; the skip is reported.
    pub fn up() -> Option<Self> {
        let lab = testing::lab_or_skip(&LabOptions::default()).unwrap()?;
        // The agent's package creates this on a node: a directory in which QEMU may create its screens.
        let screens = private_directory(&lab, "/run/waifud-vnc");
        chown(screens, Some(QEMU), Some(QEMU)).unwrap();
        // A directory for the sockets of consoles, which libvirt creates. QEMU's user cannot enter it.
        private_directory(&lab, "/run/waifud-console");
        std::fs::create_dir_all(lab.path_outside("/var/log/console")).unwrap();
        let hypervisor = LibvirtHypervisor::connect(config(&lab)).unwrap();
        Some(Self { lab, hypervisor })
    }

    /// A spec without disks and nics, with files at their paths in the node.
    pub fn spec(id: InstanceId, name: &str) -> DomainSpec {
        let mut spec = diskless_spec(id, name);
        spec.console_log = PathBuf::from(format!("/var/log/console/{id}.log"));
        spec.console_socket = PathBuf::from(format!("/run/waifud-console/{id}"));
        spec.vnc_socket = PathBuf::from(format!("/run/waifud-vnc/{id}"));
        spec
    }

    /// Defines and starts a diskless domain.
    pub async fn running(&self, name: &str) -> DomainSpec {
        let spec = Self::spec(InstanceId::generate(), name);
        self.hypervisor.ensure_defined(&spec).await.unwrap();
        self.hypervisor.ensure_started(spec.id).await.unwrap();
        spec
    }

    /// Runs a command in the node and returns its output.
    pub fn run<const N: usize>(&self, argv: [&str; N]) -> Result<String> {
        output(self.lab.command(NODE, argv)?)
    }

    /// Runs `virsh` in the node and returns its output.
    pub fn virsh<const N: usize>(&self, arguments: [&str; N]) -> Result<String> {
        let mut command = self.lab.command(NODE, ["virsh", "-c", "qemu:///system"])?;
        command.args(arguments);
        output(command)
    }

    /// Creates an empty qcow2 disk in the node that QEMU's user owns.
    pub fn create_disk(&self, path: &str, size: &str) -> Result<()> {
        self.run(["qemu-img", "create", "-q", "-f", "qcow2", path, size])?;
        self.run(["chown", &format!("{QEMU}:{QEMU}"), path])?;
        Ok(())
    }

    /// The PID of a domain's QEMU in the node.
    pub fn qemu_pid(&self, name: &str) -> Result<String> {
        let file = self
            .lab
            .path_outside(format!("/run/libvirt/qemu/{name}.pid"));
        let pid = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(pid.trim().to_owned())
    }

    fn name_of(&self, id: InstanceId) -> String {
        let name = self.virsh(["domname", &id.to_string()]).unwrap();
        name.trim().to_owned()
    }
}

/// Creates a directory in the node that only its owner may enter. Returns its path outside.
fn private_directory(lab: &Lab, path: &str) -> PathBuf {
    let path = lab.path_outside(path);
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
    path
}

/// The standard output of a command that must succeed.
fn output(mut command: Command) -> Result<String> {
    let output = command.output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {error}");
    Ok(String::from_utf8(output.stdout)?)
}

/// A qcow2 disk without a backing file.
pub fn qcow2_disk(name: &str, path: impl Into<PathBuf>) -> DomainDisk {
    DomainDisk {
        name: name.parse().unwrap(),
        source: VolumeSource::File(path.into()),
        format: DiskFormat::Qcow2,
        backing: None,
    }
}

pub fn config(lab: &Lab) -> LibvirtConfig {
    let socket = lab.path_outside("/run/libvirt/libvirt-sock");
    let mut config = LibvirtConfig::new(lab.path_outside("/var/lib/probe.json"));
    config.uri = uri(&socket);
    config.qemu_owner = Some((QEMU, QEMU));
    config.make_directories = false;
    config
}

pub fn uri(socket: &Path) -> String {
    format!("qemu:///system?socket={}", socket.display())
}

#[async_trait]
impl ExternalChanges for Node {
    async fn destroy(&self, id: InstanceId) {
        self.virsh(["destroy", &id.to_string()]).unwrap();
    }

    async fn kill(&self, id: InstanceId) {
        let pid = self.qemu_pid(&self.name_of(id)).unwrap();
        self.run(["kill", "-KILL", &pid]).unwrap();
    }

    async fn pause(&self, id: InstanceId) {
        self.virsh(["suspend", &id.to_string()]).unwrap();
    }

    async fn add_tablet(&self, id: InstanceId) {
        let device = "<input type='tablet' bus='usb'/>";
        std::fs::write(self.lab.path_outside("/tmp/tablet.xml"), device).unwrap();
        let id = id.to_string();
        self.virsh(["attach-device", &id, "/tmp/tablet.xml", "--config"])
            .unwrap();
    }

    async fn set_memory(&self, id: InstanceId, memory: ByteSize) {
        let (id, kib) = (id.to_string(), (memory.bytes() / 1024).to_string());
        self.virsh(["setmaxmem", &id, &kib, "--config"]).unwrap();
    }
}

/// Waits for an event of one kind, of any domain.
pub async fn wait_for_event(
    events: &mut tokio::sync::broadcast::Receiver<DomainEvent>,
    kind: DomainEventKind,
) {
    let wait = async { while events.recv().await.unwrap().kind != kind {} };
    tokio::time::timeout(DEADLINE, wait).await.unwrap();
}

/// Waits until a condition holds.
pub async fn until<F: Future<Output = bool>>(condition: &str, mut holds: impl FnMut() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let late = tokio::time::timeout(DEADLINE, wait).await.is_err();
    assert!(!late, "timed out waiting for {condition}");
}
