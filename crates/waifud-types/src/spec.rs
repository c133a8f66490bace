//! What people want: an instance's spec, as it is stored and as `show --json` prints it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ByteSize, Digest, MacAddr, Name, PowerSpec, RescueSpec};

/// The desired state of one instance. Every change counts its generation up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceSpec {
    /// The template's name as the person gave it.
    pub template: Name,
    /// The image that the template pointed at when the instance was created; it never changes afterwards.
    pub image: Digest,
    /// Virtual CPUs, 1 or more.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: ByteSize,
    /// Whether it should run.
    pub run: bool,
    /// Orders about its power beyond `run`.
    #[serde(default)]
    pub power: PowerSpec,
    /// What it boots in place of its own disk, while somebody mends that; null otherwise.
    #[serde(default)]
    pub rescue: Option<RescueSpec>,
    /// What happens when it stops by itself.
    pub restart: RestartPolicy,
    /// Higher starts earlier and stops later; 0 by default.
    pub priority: i32,
    /// Whether delete is refused.
    pub protected: bool,
    /// Disks; the first is the one that it boots from and is called `root`.
    pub disks: Vec<DiskSpec>,
    /// Nics; the first has the default route.
    pub nics: Vec<NicSpec>,
    /// Ports of the node that lead to the guest.
    pub publish: Vec<PublishSpec>,
    /// Wishes about the node.
    pub placement: PlacementSpec,
    /// The user-data's size and digest; its text is read separately, by operators only. Null without any.
    pub user_data: Option<UserDataFacts>,
}

/// What happens when an instance stops by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Restarted after a crash and after its own power-off.
    Always,
    /// Restarted after a crash; a guest that powers itself off stays off.
    #[default]
    OnCrash,
    /// Never restarted.
    Never,
}

/// One disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiskSpec {
    /// Unique in the instance.
    pub name: Name,
    /// Size in bytes, as the guest sees it.
    pub size_bytes: ByteSize,
    /// The pool on the node.
    pub pool: Name,
}

/// One nic.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NicSpec {
    /// Unique in the instance.
    pub name: Name,
    /// The network's name; `default` is the node's routed subnet.
    pub network: Name,
    /// Fixed for life.
    pub mac: MacAddr,
    /// The assigned address. On `default` null until placed; on a named bridge set only where somebody gave one: null
    /// means that the DHCP server there gives it, and that it is observed.
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// Bits of the address's network, 1 to 32; set exactly where an address was given on a named bridge.
    #[serde(default)]
    pub prefix_len: Option<u8>,
    /// The router of that network; only where an address was given on a named bridge.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub gateway: Option<Ipv4Addr>,
    /// Further addresses that the guest may use as source.
    #[schema(value_type = Vec<String>)]
    pub allow_addresses: Vec<IpNet>,
}

/// One published port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
pub struct PublishSpec {
    /// On the node's addresses.
    pub port: u16,
    /// In the guest.
    pub guest_port: u16,
    /// Which transport.
    pub protocol: Protocol,
}

/// A transport protocol.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The word that the wire, rules and people use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl std::fmt::Display for PublishSpec {
    /// As people write it: `80/tcp`, or `8080:80/tcp` where the guest's port is another.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.port)?;
        if self.guest_port != self.port {
            write!(f, ":{}", self.guest_port)?;
        }
        write!(f, "/{}", self.protocol.as_str())
    }
}

/// Wishes about the node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct PlacementSpec {
    /// Exactly this node, by name; null leaves the choice to waifud.
    pub node: Option<Name>,
    /// Labels that the node must have.
    #[serde(default)]
    pub require: BTreeMap<String, String>,
    /// Spread over nodes with others of the same group.
    pub spread: Option<SpreadSpec>,
}

/// Keep instances of one group on different nodes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SpreadSpec {
    /// The group's name.
    pub group: Name,
    /// Whether to wait rather than share a node.
    pub strict: bool,
}

/// What may be said about user-data without showing it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct UserDataFacts {
    /// Bytes.
    pub size_bytes: u64,
    /// Its digest.
    pub sha256: Digest,
    /// What in it keeps cloud-init from reporting to waifud; absent when nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreported: Option<Unreported>,
}

/// What in user-data keeps cloud-init from reporting to waifud. Its end is then known from the guest agent only, or from
/// its call at the end of the first boot where vendor-data is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Unreported {
    /// `vendor_data: {enabled: false}`.
    VendorDataDisabled,
    /// `reporting` replaces waifud's reporter.
    ReporterOverridden,
    /// A part of it has one of these keys; cloud-init decides what comes of that.
    PartMayOverride,
}

impl Unreported {
    /// The cause, as a clause without a full stop.
    pub const fn cause(self) -> &'static str {
        match self {
            Self::VendorDataDisabled => {
                "the user-data disables vendor-data (vendor_data.enabled), which has cloud-init report to waifud"
            }
            Self::ReporterOverridden => {
                "the user-data replaces the reporter (reporting) with which cloud-init tells waifud how far it is"
            }
            Self::PartMayOverride => {
                "a part of the user-data has the key reporting or vendor_data, which may turn off cloud-init's reports"
            }
        }
    }
}

/// Limits that are checked at the border and by whoever builds a spec.
pub mod limits {
    use crate::ByteSize;

    /// User-data's size at most: 1 MiB.
    pub const USER_DATA_MAX: u64 = 1 << 20;
    /// CPUs at most; what QEMU's q35 takes by default.
    pub const CPUS_MAX: u32 = 255;
    /// Less does not boot anything we know.
    pub const MEMORY_MIN: ByteSize = ByteSize::mib(64);
    /// More is surely a typing error: 16 TiB.
    pub const MEMORY_MAX: ByteSize = ByteSize::gib(16 * 1024);
    /// The smallest disk: 1 MiB.
    pub const DISK_MIN: ByteSize = ByteSize::mib(1);
    /// The largest disk: 64 TiB, which qcow2 with 64 KiB clusters still holds.
    pub const DISK_MAX: ByteSize = ByteSize::gib(64 * 1024);
}
