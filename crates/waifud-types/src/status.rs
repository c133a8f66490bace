//! The observed state of an instance, reported by its node and completed by waifud.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::tolerance::known_or_none;
use crate::{Coded, Generation, InstanceState, MacAddr, Name, Timestamp, WaitReason};

/// The observed state of an instance.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceStatus {
    /// Generation of the spec that the status was observed for; null before the first report.
    pub observed_generation: Option<Generation>,
    /// The state.
    pub state: InstanceState,
    /// Reason for the state if it is not obvious, as a sentence: what it waits for, or what failed.
    pub reason: Option<String>,
    /// The same as `reason` for programs: a code with fields, for example `insufficient-memory` with `needed_bytes`; null if
    /// only the text is known.
    #[serde(default)]
    pub cause: Option<Coded>,
    /// Whether cloud-init has finished, detected by the means in `ready_by`.
    pub ready: bool,
    /// How readiness was detected.
    pub ready_by: Option<ReadyBy>,
    /// How readiness was last detected, also in an earlier boot; null if the instance has never been ready. Boots of a rescue
    /// system do not count.
    #[serde(default)]
    pub last_ready_by: Option<ReadyBy>,
    /// Name of the node; null until placed.
    pub node: Option<Name>,
    /// The hypervisor that runs it; null until started.
    pub hypervisor: Option<HypervisorKind>,
    /// Time of the last start, on the node's clock; null if the instance is off.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// What stopped the instance; null if it is not stopped.
    #[serde(default, deserialize_with = "known_or_none")]
    pub stopped_by: Option<StoppedBy>,
    /// The last state that the node reported; null unless the state is unknown.
    pub last_state: Option<InstanceState>,
    /// Time of the node's last report about the instance.
    #[schema(value_type = Option<String>)]
    pub last_seen: Option<Timestamp>,
    /// Assigned and observed addresses.
    pub addresses: Vec<InstanceAddress>,
    /// The nics as the node has them, including those that were removed from the spec and are still there. Empty until the node
    /// has reported them.
    #[serde(default)]
    pub nics: Vec<NicStatus>,
    /// The current step; null if there is none.
    pub step: Option<StepStatus>,
    /// Fields of the spec that take effect at the next start.
    pub restart_needed: Vec<String>,
    /// The state of cloud-init.
    pub cloud_init: CloudInitStatus,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

impl InstanceStatus {
    /// The status of an instance before the first report.
    pub fn pending(reason: Option<String>) -> Self {
        Self {
            observed_generation: None,
            state: InstanceState::Pending,
            reason,
            cause: None,
            ready: false,
            ready_by: None,
            last_ready_by: None,
            node: None,
            hypervisor: None,
            started_at: None,
            stopped_by: None,
            last_state: None,
            last_seen: None,
            addresses: Vec::new(),
            nics: Vec::new(),
            step: None,
            restart_needed: Vec::new(),
            cloud_init: CloudInitStatus::default(),
            conditions: Vec::new(),
        }
    }

    /// Sets the reason that waifud determined.
    pub fn set_wait(&mut self, reason: &WaitReason) {
        self.reason = Some(reason.to_string());
        self.cause = Some(Coded::encode(reason));
    }

    /// Removes the reason.
    pub fn clear_reason(&mut self) {
        self.reason = None;
        self.cause = None;
    }

    /// The reason that waifud determined, unless there is none or this version does not know it.
    pub fn wait_reason(&self) -> Option<WaitReason> {
        self.cause.as_ref()?.decode()
    }

    /// The reason in English: from the cause if this version knows it, else the text of the server.
    pub fn reason_in_english(&self) -> Option<String> {
        let wait = self.wait_reason().map(|reason| reason.to_string());
        wait.or_else(|| self.reason.clone())
    }
}

/// A nic on the node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NicStatus {
    /// Name of the nic.
    pub name: Name,
    /// Name of its network.
    pub network: Name,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Whether the guest has it.
    pub state: NicState,
    /// Why it is not in its final state, as a sentence; null if there is nothing to say.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Whether a guest has a nic.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NicState {
    /// The running guest has it.
    Attached,
    /// It is being added to the running guest.
    Adding,
    /// It could not be added to the running guest, which gets it at its next start.
    NextStart,
    /// It was removed from the spec, and the running guest has not released it yet.
    Removing,
    /// The guest is off.
    Off,
    /// A state that this version does not know.
    #[serde(other)]
    Other,
}

names! {
    /// The name in the API and in tables.
    NicState {
        Attached => "attached",
        Adding => "adding",
        NextStart => "next-start",
        Removing => "removing",
        Off => "off",
        Other => "unknown",
    }
}

/// How readiness was detected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReadyBy {
    /// The guest agent read the result of cloud-init.
    GuestAgent,
    /// cloud-init's reporter sent the end of its last stage to the metadata service.
    Reporter,
    /// The guest's console shows cloud-init's final message of this boot. The result is not known.
    Console,
    /// cloud-init phoned home to the metadata service.
    PhoneHome,
    /// A source that this version does not know.
    #[serde(other)]
    Other,
}

/// How a node runs guests.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HypervisorKind {
    /// Hardware virtualization.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

names! {
    /// The name in the API and in tables.
    HypervisorKind {
        Kvm => "kvm",
        Tcg => "tcg",
    }
}

/// What stopped an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StoppedBy {
    /// A user, through waifud.
    User,
    /// The guest powered itself off.
    Guest,
    /// The guest or its hypervisor crashed.
    Crash,
    /// The host shut down.
    Host,
    /// Something outside waifud, for example `virsh destroy` or a signal.
    Outside,
}

/// An address of an instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceAddress {
    /// The address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// `ipv4` or `ipv6`.
    pub family: AddressFamily,
    /// Name of the network.
    pub network: Name,
    /// Whether waifud assigned the address or observed it.
    pub source: AddressSource,
    /// Whether it is the address that `waifuctl ip` prints.
    pub primary: bool,
}

impl InstanceAddress {
    /// An address that was observed at a guest. It is not the primary one.
    pub fn observed(address: IpAddr, network: Name) -> Self {
        Self {
            address,
            family: match address {
                IpAddr::V4(_) => AddressFamily::Ipv4,
                IpAddr::V6(_) => AddressFamily::Ipv6,
            },
            network,
            source: AddressSource::Observed,
            primary: false,
        }
    }
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

/// Origin of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AddressSource {
    /// Assigned by waifud.
    Assigned,
    /// Observed in use.
    Observed,
}

/// The step that the node is working on.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct StepStatus {
    /// Name of the step: `image`, `volume`, `network`, `bundle`, `define`, `start`, `ready` or others.
    pub name: String,
    /// Progress from 0 to 100; null if unknown.
    pub percent: Option<u8>,
    /// Start time of the step.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// What the step waits for; null while it makes progress.
    pub waiting_for: Option<String>,
}

/// The state of cloud-init.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CloudInitStatus {
    /// The state.
    pub state: CloudInitState,
    /// The instance-id that cloud-init received.
    pub instance_id: Option<String>,
    /// The datasource that cloud-init found, for example `DataSourceOpenStackLocal`.
    pub datasource: Option<String>,
    /// Errors reported by cloud-init. This is text from the guest: escape it before printing.
    pub errors: Vec<String>,
    /// Why the state cannot be known; absent unless it is `unknown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown_because: Option<String>,
}

/// Progress and result of cloud-init.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CloudInitState {
    /// Not started yet.
    #[default]
    Pending,
    /// Running.
    Running,
    /// Finished without errors.
    Done,
    /// Finished with recoverable errors.
    Degraded,
    /// Finished with errors.
    Error,
    /// Disabled in the guest.
    Disabled,
    /// Cannot be known. Also a state that this version does not know.
    #[serde(other)]
    Unknown,
}

impl CloudInitState {
    /// Whether the state is final for this boot.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Done | Self::Degraded | Self::Error | Self::Disabled => true,
            Self::Pending | Self::Running | Self::Unknown => false,
        }
    }
}

/// A condition of an object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Condition {
    /// Type of the condition in kebab case, for example `metadata-served`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether the condition is healthy.
    pub ok: bool,
    /// A stable reason for programs.
    pub reason: String,
    /// A message for users.
    pub message: String,
    /// Time of the last change.
    #[schema(value_type = String)]
    pub since: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_ready_by_is_parsed_as_other() {
        let mut status = serde_json::to_value(InstanceStatus::pending(None)).unwrap();
        status["ready_by"] = "telepathy".into();
        let newer: InstanceStatus = serde_json::from_value(status).unwrap();
        assert_eq!(newer.ready_by, Some(ReadyBy::Other));
    }

    #[test]
    fn a_status_without_a_cause_keeps_its_text() {
        let mut json = serde_json::to_value(InstanceStatus::pending(None)).unwrap();
        let fields = json.as_object_mut().unwrap();
        fields.remove("cause");
        fields.insert("reason".to_owned(), "waiting for the moon".into());
        let old: InstanceStatus = serde_json::from_value(json).unwrap();
        assert_eq!(old.wait_reason(), None);
        assert_eq!(old.reason_in_english().unwrap(), "waiting for the moon");
    }

    #[test]
    fn a_cleared_reason_leaves_neither_text_nor_cause() {
        let mut status = InstanceStatus::pending(None);
        status.set_wait(&WaitReason::NoNodes);
        assert!(status.reason.is_some() && status.cause.is_some());
        status.clear_reason();
        assert_eq!((status.reason, status.cause), (None, None));
    }

    #[test]
    fn an_unknown_cause_falls_back_to_the_text() {
        let mut status = InstanceStatus::pending(None);
        status.set_wait(&WaitReason::NoNodes);
        assert_eq!(status.wait_reason(), Some(WaitReason::NoNodes));
        let mut json = serde_json::to_value(&status).unwrap();
        json["cause"]["code"] = "eclipse".into();
        json["reason"] = "waiting for the eclipse".into();
        let newer: InstanceStatus = serde_json::from_value(json).unwrap();
        assert_eq!(
            newer.reason_in_english().unwrap(),
            "waiting for the eclipse"
        );
    }
}
