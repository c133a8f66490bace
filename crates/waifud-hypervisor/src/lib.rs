//! The hypervisor interface: the trait, its implementation with libvirt, and a fake.
//!
//! "Domain" is libvirt's term for a virtual machine and is used only in this crate; other crates call it an instance.
//! Every method that changes a domain is idempotent: repeating it changes nothing and succeeds.

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
    /// The instance's id. It is the domain's UUID, by which the domain is found.
    pub id: InstanceId,
    /// The instance's name, which is also the domain's name.
    pub name: Name,
    /// The epoch of the instance, stored in the domain's metadata.
    pub epoch: Epoch,
    /// The number of virtual CPUs.
    pub cpus: u32,
    /// The memory size.
    pub memory: ByteSize,
    /// KVM or emulation, according to the probe.
    pub kind: HypervisorKind,
    /// The firmware.
    pub firmware: Firmware,
    /// The cloud-init datasource of the guest. It determines the SMBIOS strings.
    pub datasource: Datasource,
    /// The disks in order. The guest boots from the first.
    pub disks: Vec<DomainDisk>,
    /// The disk with the guest's documents, if the datasource is a disk: raw, read-only, and the last disk.
    pub seed: Option<PathBuf>,
    /// The nics in order.
    pub nics: Vec<DomainNic>,
    /// The log file of the serial console.
    pub console_log: PathBuf,
    /// The serial console's unix socket; QEMU serves one connection at a time.
    pub console_socket: PathBuf,
    /// The VNC server's unix socket.
    pub vnc_socket: PathBuf,
}

impl DomainSpec {
    /// The sources of its disks, by the disks' names, in the form of [`ObservedDomain::disks`].
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
    /// The disk's name in the spec, for example `root`.
    pub name: Name,
    /// The volume's file or block device.
    pub source: VolumeSource,
    /// The format of the volume.
    pub format: DiskFormat,
    /// The qcow2 image below an overlay; `None` for a standalone volume. It is never read from the overlay's header,
    /// because QEMU can write to it.
    pub backing: Option<PathBuf>,
}

/// A nic of a domain: a port of a bridge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainNic {
    /// The number of the nic, which identifies it among the nics of the domain.
    pub number: usize,
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

/// A nic of a running domain, after [`Hypervisor::ensure_nics`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LiveNic {
    /// The guest has it, as requested.
    Attached,
    /// The hypervisor cannot add it to the running guest, with the reason. The guest gets it at its next start.
    Refused(String),
    /// The guest was asked to release it and still has it.
    Leaving,
}

/// The state of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainState {
    /// The guest is running.
    Running,
    /// The guest is paused: by a user, after an I/O error, or for another reason.
    Paused {
        /// Whether an I/O error paused it, for example a full disk.
        io_error: bool,
    },
    /// The guest was asked to shut down and is still running.
    ShuttingDown,
    /// The domain is off.
    Off(OffReason),
    /// The guest crashed, and libvirt has not stopped its QEMU.
    Crashed,
}

/// Why a domain is off, as far as the hypervisor knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OffReason {
    /// It was never started, or the reason is unknown.
    Unknown,
    /// The guest powered itself off.
    GuestShutdown,
    /// It was powered off, by waifud or by another program.
    Destroyed,
    /// The guest or QEMU crashed.
    Crashed,
    /// It failed to start.
    StartFailed,
}

/// An observed domain of waifud.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObservedDomain {
    /// The instance, from the domain's UUID.
    pub id: InstanceId,
    /// The domain's name.
    pub name: String,
    /// The epoch in the domain's metadata; `None` for a domain that was defined with this UUID by another program.
    pub epoch: Option<Epoch>,
    /// The current state.
    pub state: DomainState,
    /// KVM or emulation.
    pub kind: HypervisorKind,
    /// The digest of the `DomainSpec` that it was defined from, as stored in its metadata; `None` if absent.
    pub spec_digest: Option<String>,
    /// The sources of waifud's disks, by the disks' names, from the definition for the next start. Disks that a user
    /// added by hand are not included.
    pub disks: BTreeMap<Name, VolumeSource>,
    /// Manual changes, which take effect at the next start at the latest: devices that waifud did not add, and settings
    /// that differ from the spec. At most 16 short sentences, escaped.
    pub drift: Vec<String>,
}

/// A change of a domain. It is only a hint to observe the domain again: events can be lost, and can concern a domain
/// that does not belong to waifud.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainEvent {
    /// The instance.
    pub id: InstanceId,
    /// The kind of change.
    pub kind: DomainEventKind,
}

/// The kinds of events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainEventKind {
    /// It was started or resumed.
    Started,
    /// It was paused.
    Paused,
    /// It stopped, for this reason.
    Stopped(OffReason),
    /// It was defined or undefined.
    Changed,
    /// Its guest agent connected or disconnected.
    AgentChanged,
    /// It was reset and is booting again without a power-off.
    Rebooted,
    /// The connection to the hypervisor was lost or restored: observe everything again. The event's id is nil.
    Resync,
}

/// Why an operation failed. The messages are written for users.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// libvirtd is not running or refuses the connection.
    #[error(
        "cannot connect to libvirt at {uri}: {message}; check that libvirtd is running and that this user may connect"
    )]
    Unreachable {
        /// The connection's URI.
        uri: String,
        /// libvirt's error message.
        message: String,
    },
    /// The domain does not exist.
    #[error("instance {0} has no domain")]
    NotFound(InstanceId),
    /// The domain is off, so it has no console and no screen.
    #[error("the domain of {0} is not running")]
    NotRunning(InstanceId),
    /// The guest agent does not answer. The guest may still be booting.
    #[error("the guest agent of {0} does not answer")]
    AgentUnresponsive(InstanceId),
    /// The domain failed to start.
    #[error("cannot start {name}: {message}")]
    StartFailed {
        /// The domain's name.
        name: String,
        /// libvirt's error message.
        message: String,
    },
    /// A call to libvirt timed out.
    #[error("cannot {operation}: no answer within {after:?}")]
    TimedOut {
        /// What was attempted, as a verb phrase after "cannot".
        operation: &'static str,
        /// The time limit.
        after: Duration,
    },
    /// Another domain has the name or the UUID.
    #[error("a domain named {name} exists and does not belong to waifud; rename or undefine it")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Any other error of the hypervisor.
    #[error("cannot {operation}: {message}")]
    Other {
        /// What was attempted, as a verb phrase after "cannot".
        operation: &'static str,
        /// libvirt's error message.
        message: String,
    },
}

/// The error for growing a disk that the instance's running domain does not have.
fn no_such_disk(disk: &Name) -> HypervisorError {
    HypervisorError::Other {
        operation: "resize the disk",
        message: format!("the domain is off or has no disk {disk}"),
    }
}

/// The error for changing the nics of a domain that is off.
fn nics_of_domain_that_is_off() -> HypervisorError {
    HypervisorError::Other {
        operation: "change the nics",
        message: "the domain is off".to_owned(),
    }
}

/// Properties of this node's hypervisor and host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostFacts {
    /// KVM or emulation, with the reason.
    pub hypervisor: HypervisorFacts,
    /// The CPUs and the memory of the host.
    pub capacity: Resources,
    /// The CPU architecture, for example `x86_64`.
    pub arch: String,
    /// The CPU model as reported by the kernel.
    pub cpu_model: String,
}

/// Runs virtual machines. Implementations are cheap to clone behind an `Arc` and safe to call from many tasks.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// What this host supports. The first call probes KVM by running a test machine; the result is cached.
    async fn host(&self) -> Result<HostFacts, HypervisorError>;

    /// Every domain with waifud's metadata, running or not.
    async fn list(&self) -> Result<Vec<ObservedDomain>, HypervisorError> {
        self.list_except(&BTreeSet::new()).await
    }

    /// Every domain of waifud except the known ones. Known domains are not read, so the cost does not depend on their
    /// number.
    async fn list_except(
        &self,
        known: &BTreeSet<InstanceId>,
    ) -> Result<Vec<ObservedDomain>, HypervisorError>;

    /// One domain; `None` if no domain has this id.
    async fn get(&self, id: InstanceId) -> Result<Option<ObservedDomain>, HypervisorError>;

    /// Defines the domain, or redefines it if its spec differs. A running domain keeps running, and the changes take
    /// effect at its next start at the latest. Devices that were added by hand are kept.
    async fn ensure_defined(&self, spec: &DomainSpec) -> Result<(), HypervisorError>;

    /// Starts the domain if it is not running, and resumes it if it is paused.
    async fn ensure_started(&self, id: InstanceId) -> Result<(), HypervisorError>;

    /// Asks the guest to shut down (agent first, ACPI otherwise) and returns at once.
    async fn request_shutdown(&self, id: InstanceId) -> Result<(), HypervisorError>;

    /// Powers the domain off and returns when it is off. Succeeds if it was off or absent.
    async fn ensure_off(&self, id: InstanceId) -> Result<(), HypervisorError>;

    /// Powers the domain off if necessary, and undefines it. Succeeds if it is absent. Volumes are not touched.
    async fn ensure_absent(&self, id: InstanceId) -> Result<(), HypervisorError>;

    /// Grows a running domain's disk to at least `size`; the guest sees it at once. Never shrinks one.
    async fn ensure_disk_size(
        &self,
        id: InstanceId,
        disk: &Name,
        size: ByteSize,
    ) -> Result<(), HypervisorError>;

    /// Adds these nics to a running domain if it does not have them, and asks the guest to release the other nics that waifud gave
    /// it. Returns the state of each; a nic that is not wanted and not returned is gone, and its port does not exist any more.
    /// An event follows when the guest has released a nic.
    async fn ensure_nics(
        &self,
        id: InstanceId,
        nics: &[DomainNic],
    ) -> Result<BTreeMap<TapName, LiveNic>, HypervisorError>;

    /// Sends a JSON command to the guest agent and returns its `return` value. Text in it comes from the guest and is
    /// untrusted.
    async fn agent_command(
        &self,
        id: InstanceId,
        command: serde_json::Value,
        timeout: Duration,
    ) -> Result<serde_json::Value, HypervisorError>;

    /// Connects to a device of the running domain. A console serves one connection at a time; another one waits.
    async fn open_device(
        &self,
        id: InstanceId,
        device: Device,
    ) -> Result<Box<dyn ByteStream>, HypervisorError>;

    /// The events after this call.
    fn events(&self) -> broadcast::Receiver<DomainEvent>;
}
