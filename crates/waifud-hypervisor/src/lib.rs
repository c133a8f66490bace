//! The hypervisor interface: the trait, libvirt behind it, and a fake.
//!
//! "Domain" is libvirt's word for a running machine and appears only here; above this crate it is an instance.
//! Every verb is an *ensure*: calling it again when the work is done changes nothing and succeeds.

pub mod conformance;
mod device;
pub mod fake;
#[cfg(feature = "libvirt")]
pub mod libvirt;
pub mod xml;

pub use device::{ByteStream, Device};

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;
use waifud_types::node::{HypervisorFacts, Resources};
use waifud_types::status::HypervisorKind;
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{
    ByteSize, Digest, DiskFormat, Epoch, InstanceId, MacAddr, Name, TapName, VolumeSource,
};

/// Everything that defines a domain. Equal specs define equal domains.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainSpec {
    /// The instance. It is the domain's UUID, by which the domain is found.
    pub id: InstanceId,
    /// The instance's name. It is the domain's name, as `virsh list` shows it.
    pub name: Name,
    /// The epoch of the instance, stored in the domain's metadata.
    pub epoch: Epoch,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: ByteSize,
    /// KVM or emulation, as the probe determined.
    pub kind: HypervisorKind,
    /// The firmware.
    pub firmware: Firmware,
    /// How the guest finds its documents; decides the SMBIOS strings.
    pub datasource: Datasource,
    /// Disks in order; the first is booted.
    pub disks: Vec<DomainDisk>,
    /// The disk with the guest's documents, if the guest reads them from a disk: raw, read-only, and the last disk.
    pub seed: Option<PathBuf>,
    /// Nics in order.
    pub nics: Vec<DomainNic>,
    /// The log file of the serial console.
    pub console_log: PathBuf,
    /// The serial console's unix socket; QEMU serves one connection at a time.
    pub console_socket: PathBuf,
    /// The VNC server's unix socket.
    pub vnc_socket: PathBuf,
}

impl DomainSpec {
    /// What its disks are, by name, as [`ObservedDomain::disks`] shows them.
    pub fn disk_sources(&self) -> BTreeMap<Name, VolumeSource> {
        let disks = self.disks.iter();
        disks
            .map(|disk| (disk.name.clone(), disk.source.clone()))
            .collect()
    }

    /// A digest in 64 hexadecimal digits. Equal specs have equal digests, and different specs have different ones.
    pub fn digest(&self) -> String {
        // The digest of the XML, so that it also changes when domains are rendered differently.
        let text = xml::render(self, xml::RenderOptions::default(), "");
        Digest::of(text.as_bytes()).hex()
    }
}

/// A disk of a domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainDisk {
    /// The disk's name in the spec, such as `root`.
    pub name: Name,
    /// The volume's file or block device.
    pub source: VolumeSource,
    /// The format of its data.
    pub format: DiskFormat,
    /// The qcow2 image that it is an overlay on; `None` if it needs no other file. It is never read from the overlay's
    /// header, which QEMU can write.
    pub backing: Option<PathBuf>,
}

/// A nic of a domain: a port of a bridge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainNic {
    /// The port's name on the node. waifud chooses it, so that rules exist before the port does.
    pub tap: TapName,
    /// The guest's MAC address.
    pub mac: MacAddr,
    /// The bridge that the port joins.
    pub bridge: String,
    /// The MTU announced to the guest; `None` for 1500.
    pub mtu: Option<u16>,
    /// Whether the port is isolated from the other isolated ports of the bridge.
    pub isolated: bool,
}

/// The state of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainState {
    /// It runs.
    Running,
    /// Halted: by a user, a full disk (`io_error`), or for another reason.
    Paused {
        /// Whether an input/output error (a full disk) halted it.
        io_error: bool,
    },
    /// It was asked to shut down and is still running.
    ShuttingDown,
    /// Off, and why.
    Off(OffReason),
    /// It crashed, and libvirt kept its remains.
    Crashed,
}

/// Why a domain is off, as far as the hypervisor knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OffReason {
    /// It was never started since it was defined, or the reason is unknown.
    Unknown,
    /// The guest powered itself off.
    GuestShutdown,
    /// It was destroyed.
    Destroyed,
    /// The guest or QEMU crashed.
    Crashed,
    /// It could not be started.
    StartFailed,
}

/// An observed domain of waifud.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObservedDomain {
    /// The instance, from the domain's UUID.
    pub id: InstanceId,
    /// The domain's name.
    pub name: String,
    /// The epoch in the domain's metadata; `None` for a domain that was defined under our id by another program.
    pub epoch: Option<Epoch>,
    /// What it is doing.
    pub state: DomainState,
    /// KVM or emulation.
    pub kind: HypervisorKind,
    /// A digest over the `DomainSpec` it was defined from, from the domain's metadata; null when absent.
    pub spec_digest: Option<String>,
    /// What its own disks are, by the disk's name, from its definition for the next start. Without disks that a user
    /// added by hand.
    pub disks: BTreeMap<Name, VolumeSource>,
    /// Manual changes, effective at the next start at the latest: devices that waifud did not add, and settings that
    /// differ from the spec. At most sixteen short sentences, escaped.
    pub drift: Vec<String>,
}

/// A change of a domain. It is only a hint to observe the domain again: events can be lost, and can concern a domain that
/// is not ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainEvent {
    /// The instance.
    pub id: InstanceId,
    /// What happened.
    pub kind: DomainEventKind,
}

/// Kinds of events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainEventKind {
    /// It was started or resumed.
    Started,
    /// It was halted.
    Paused,
    /// It stopped, and why.
    Stopped(OffReason),
    /// It was defined or undefined.
    Changed,
    /// Its guest agent connected or disconnected.
    AgentChanged,
    /// It was reset and boots again without having been off.
    Rebooted,
    /// The connection to the hypervisor was lost or restored: observe everything again. The event's id is nil.
    Resync,
}

/// Why an operation failed. Messages are written for users; causes are in `source`.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// libvirtd is not running or refuses the connection.
    #[error(
        "libvirt can't be reached at {uri}: {message}; is libvirtd running, and may this user connect?"
    )]
    Unreachable {
        /// The connection's URI.
        uri: String,
        /// libvirt's words.
        message: String,
    },
    /// No such domain.
    #[error("there is no domain for instance {0}")]
    NotFound(InstanceId),
    /// It is off: it has neither console nor screen.
    #[error("the domain of {0} is not running")]
    NotRunning(InstanceId),
    /// The guest agent does not answer (yet).
    #[error("the guest agent of {0} does not answer")]
    AgentSilent(InstanceId),
    /// The machine could not be started.
    #[error("{name} could not be started: {message}")]
    StartFailed {
        /// The domain's name.
        name: String,
        /// libvirt's words.
        message: String,
    },
    /// An outside call took too long.
    #[error("libvirt did not answer {what} within {after:?}")]
    TimedOut {
        /// The call.
        what: &'static str,
        /// The limit.
        after: Duration,
    },
    /// Another domain has the name or the UUID.
    #[error("a domain named {name} exists that is not waifud's; rename or undefine it")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Anything else that the hypervisor said.
    #[error("libvirt failed at {what}: {message}")]
    Other {
        /// The call.
        what: &'static str,
        /// libvirt's words.
        message: String,
    },
}

/// A disk was to be grown that no running domain of that instance has.
fn no_such_disk(disk: &Name) -> HypervisorError {
    HypervisorError::Other {
        what: "block resize",
        message: format!("there is no running domain with a disk {disk}"),
    }
}

/// What the hypervisor of this node is and has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostFacts {
    /// KVM or emulation, and what the probe saw.
    pub hypervisor: HypervisorFacts,
    /// CPUs and memory of the host.
    pub capacity: Resources,
    /// `x86_64` or `aarch64`.
    pub arch: String,
    /// As the kernel names it.
    pub cpu_model: String,
}

/// Runs machines. Implementations are cheap to clone behind an `Arc` and safe to call from many tasks.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// What this host can do. The first call probes KVM by running something; the answer is remembered.
    async fn host(&self) -> Result<HostFacts, HypervisorError>;

    /// Every domain of waifud (those that carry our metadata), running or not.
    async fn list(&self) -> Result<Vec<ObservedDomain>, HypervisorError>;

    /// Every domain of waifud but these. Of those nothing is read, so that looking for what is unknown costs the same with
    /// any number of known ones.
    async fn list_except(
        &self,
        known: &BTreeSet<InstanceId>,
    ) -> Result<Vec<ObservedDomain>, HypervisorError> {
        let mut domains = self.list().await?;
        domains.retain(|domain| !known.contains(&domain.id));
        Ok(domains)
    }

    /// One domain; `None` when there is none under that id.
    async fn get(&self, id: InstanceId) -> Result<Option<ObservedDomain>, HypervisorError>;

    /// Defines the domain, or redefines it when its spec differs; a running one keeps running and takes what it can
    /// at its next start. Devices that somebody added by hand are kept.
    async fn ensure_defined(&self, spec: &DomainSpec) -> Result<(), HypervisorError>;

    /// Starts it unless it runs. A paused one is resumed.
    async fn ensure_started(&self, id: InstanceId) -> Result<(), HypervisorError>;

    /// Asks the guest to shut down (agent first, ACPI otherwise) and returns at once.
    async fn request_shutdown(&self, id: InstanceId) -> Result<(), HypervisorError>;

    /// Pulls the plug; done when it is off. Succeeds when it was off or absent.
    async fn ensure_off(&self, id: InstanceId) -> Result<(), HypervisorError>;

    /// Pulls the plug if need be and undefines it. Succeeds when it is absent. Volumes are not touched.
    async fn ensure_absent(&self, id: InstanceId) -> Result<(), HypervisorError>;

    /// Grows a running domain's disk to at least `size`; the guest sees it at once. Never shrinks one.
    async fn ensure_disk_size(
        &self,
        id: InstanceId,
        disk: &Name,
        size: ByteSize,
    ) -> Result<(), HypervisorError>;

    /// Sends one JSON command to the guest agent and returns its `return` value. Text in it comes from the guest.
    async fn agent_command(
        &self,
        id: InstanceId,
        command: serde_json::Value,
        timeout: Duration,
    ) -> Result<serde_json::Value, HypervisorError>;

    /// Connects to a device of the running domain. A console has one connection at a time: another waits for its end.
    async fn open_device(
        &self,
        id: InstanceId,
        device: Device,
    ) -> Result<Box<dyn ByteStream>, HypervisorError>;

    /// Events from now on.
    fn events(&self) -> broadcast::Receiver<DomainEvent>;
}
