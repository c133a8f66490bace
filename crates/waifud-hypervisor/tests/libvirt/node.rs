//! A node with libvirtd, a hypervisor connected to it, and what tests do to its domains behind our back.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use waifud_hypervisor::conformance::{Outside, diskless_spec};
use waifud_hypervisor::libvirt::{LibvirtConfig, LibvirtHypervisor};
use waifud_hypervisor::{DomainEvent, DomainEventKind, DomainSpec, Hypervisor};
use waifud_lab::{Lab, LabOptions, testing};
use waifud_types::{ByteSize, InstanceId};

/// The number that Debian's libvirt packages give `libvirt-qemu`.
pub const QEMU: u32 = 64_055;
pub const NODE: &str = "alder";
/// How long anything may take on a busy machine.
pub const DEADLINE: Duration = Duration::from_mins(1);

pub struct Node {
    pub lab: Lab,
    pub hypervisor: Arc<LibvirtHypervisor>,
}

impl Node {
    /// `None` when the machine can have no lab; that was said loudly.
    pub fn up() -> Option<Self> {
        let lab = testing::lab_or_skip(&LabOptions::default()).unwrap()?;
        // What the agent's package makes on a node: a place that QEMU may put its screens into.
        let screens = lab.path_outside("/run/waifud-vnc");
        std::fs::create_dir(&screens).unwrap();
        std::fs::set_permissions(
            &screens,
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .unwrap();
        chown(&screens, Some(QEMU), Some(QEMU)).unwrap();
        // And one for the consoles' sockets, which libvirt makes: QEMU's user does not reach into it.
        let consoles = lab.path_outside("/run/waifud-console");
        std::fs::create_dir(&consoles).unwrap();
        std::fs::set_permissions(
            &consoles,
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .unwrap();
        std::fs::create_dir_all(lab.path_outside("/var/log/console")).unwrap();
        let hypervisor = LibvirtHypervisor::connect(config(&lab)).unwrap();
        Some(Self { lab, hypervisor })
    }

    /// A spec without disks and nics, whose files lie where the node has them.
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

    /// Runs a command in the node; its output.
    pub fn run<const N: usize>(&self, argv: [&str; N]) -> Result<String> {
        let output = self.lab.command(NODE, argv)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{argv:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn virsh<const N: usize>(&self, words: [&str; N]) -> Result<String> {
        let mut command = self.lab.command(NODE, ["virsh", "-c", "qemu:///system"])?;
        let output = command.args(words).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "virsh {words:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The PID of a domain's QEMU inside the node.
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
impl Outside for Node {
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

/// Waits for an event of one kind, of whatever domain.
pub async fn hear(
    events: &mut tokio::sync::broadcast::Receiver<DomainEvent>,
    kind: DomainEventKind,
) {
    let heard = async { while events.recv().await.unwrap().kind != kind {} };
    tokio::time::timeout(DEADLINE, heard).await.unwrap();
}

/// Waits until something is so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let wait = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let late = tokio::time::timeout(DEADLINE, wait).await.is_err();
    assert!(!late, "waited in vain for {what}");
}
