//! What is: an instance's status, as its node reported it and waifud completed it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Generation, InstanceState, Name, Timestamp};

/// The observed state of one instance.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceStatus {
    /// The generation of the spec that this status was observed for; null before any.
    pub observed_generation: Option<Generation>,
    /// What it is doing.
    pub state: InstanceState,
    /// Why, in a sentence, where it is not obvious: what is waited for, or what failed.
    pub reason: Option<String>,
    /// Whether cloud-init is done, proven as `ready_by` says.
    pub ready: bool,
    /// How readiness was proven.
    pub ready_by: Option<ReadyBy>,
    /// The node's name; null until placed.
    pub node: Option<Name>,
    /// What runs it; null until started.
    pub hypervisor: Option<HypervisorKind>,
    /// When it was last started, by its node's clock; null unless it is on.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// Who stopped it, when stopped.
    pub stopped_by: Option<StoppedBy>,
    /// What was true when the node was last heard of; null unless the state is unknown.
    pub last_state: Option<InstanceState>,
    /// When the node last reported on it.
    #[schema(value_type = Option<String>)]
    pub last_seen: Option<Timestamp>,
    /// Assigned and observed addresses.
    pub addresses: Vec<InstanceAddress>,
    /// The step at work; null when nothing is.
    pub step: Option<StepStatus>,
    /// Fields of the spec that count only after the next start.
    pub restart_needed: Vec<String>,
    /// What cloud-init says of itself.
    pub cloud_init: CloudInitStatus,
    /// Further conditions.
    pub conditions: Vec<Condition>,
}

impl InstanceStatus {
    /// The status of an instance that nothing was reported of yet.
    pub fn pending(reason: Option<String>) -> Self {
        Self {
            observed_generation: None,
            state: InstanceState::Pending,
            reason,
            ready: false,
            ready_by: None,
            node: None,
            hypervisor: None,
            started_at: None,
            stopped_by: None,
            last_state: None,
            last_seen: None,
            addresses: Vec::new(),
            step: None,
            restart_needed: Vec::new(),
            cloud_init: CloudInitStatus::default(),
            conditions: Vec::new(),
        }
    }
}

/// How readiness was proven.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReadyBy {
    /// The guest agent read cloud-init's result.
    GuestAgent,
    /// cloud-init's own reporter told the metadata service that its last stage has ended.
    Reporter,
    /// cloud-init phoned home to the metadata service.
    PhoneHome,
}

/// How guests are run on a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HypervisorKind {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

impl HypervisorKind {
    /// The word that the wire and tables use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Who stopped an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StoppedBy {
    /// Somebody asked waifud.
    User,
    /// The guest powered itself off; it stays off.
    Guest,
    /// The guest or its hypervisor crashed.
    Crash,
    /// The host shut down.
    Host,
    /// Something outside waifud stopped it (virsh destroy, a kill).
    Outside,
}

/// One address of an instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceAddress {
    /// The address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// `ipv4` or `ipv6`.
    pub family: AddressFamily,
    /// The network's name.
    pub network: Name,
    /// Given by waifud, or seen at the guest.
    pub source: AddressSource,
    /// The one that `waifuctl ip` prints.
    pub primary: bool,
}

/// IP version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AddressFamily {
    /// IP version 4.
    Ipv4,
    /// IP version 6.
    Ipv6,
}

/// Where knowledge of an address comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AddressSource {
    /// waifud chose it.
    Assigned,
    /// It was seen in use.
    Observed,
}

/// The step that a node's driver is working on.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct StepStatus {
    /// Such as `image`, `volume`, `network`, `bundle`, `define`, `start`, `ready`.
    pub name: String,
    /// 0 to 100; null where it can't be known.
    pub percent: Option<u8>,
    /// When it began.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// What it waits for, in words; null when it is at work.
    pub waiting_for: Option<String>,
}

/// What cloud-init says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CloudInitStatus {
    /// How far it is.
    pub state: CloudInitState,
    /// The instance-id that it was given.
    pub instance_id: Option<String>,
    /// The datasource that it found, such as `DataSourceOpenStackLocal`.
    pub datasource: Option<String>,
    /// What went wrong, in cloud-init's words; text from a guest: escape before printing.
    pub errors: Vec<String>,
    /// Why the state cannot be known, as a clause; absent unless it is `unknown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown_because: Option<String>,
}

/// How far cloud-init is. What can't be known is `unknown`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CloudInitState {
    /// Not started.
    #[default]
    Pending,
    /// At work.
    Running,
    /// Finished without errors.
    Done,
    /// Finished with recoverable errors.
    Degraded,
    /// Finished with errors.
    Error,
    /// Switched off in the guest.
    Disabled,
    /// Nothing can be learned.
    Unknown,
}

impl CloudInitState {
    /// Whether it will not change any more during this boot.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Done | Self::Degraded | Self::Error | Self::Disabled => true,
            Self::Pending | Self::Running | Self::Unknown => false,
        }
    }
}

/// One statement about a thing, true or not, with a reason.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Condition {
    /// Its kind in kebab case, such as `metadata-served`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether all is well in this respect.
    pub ok: bool,
    /// A word for scripts.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// Since when.
    #[schema(value_type = String)]
    pub since: Timestamp,
}
