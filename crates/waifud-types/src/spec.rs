//! The desired state of an instance, as it is stored and as `show --json` prints it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::tolerance::known_or_none;
use crate::{ByteSize, Digest, FirewallSpec, MacAddr, Name, PowerSpec, RescueSpec, VlanId};

/// The desired state of an instance. Every change increments its generation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceSpec {
    /// Name of the template.
    pub template: Name,
    /// The template's image at creation; it does not change afterwards.
    pub image: Digest,
    /// Number of virtual CPUs, at least 1.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: ByteSize,
    /// Whether the instance should run.
    pub run: bool,
    /// Power-off and reboot orders.
    #[serde(default)]
    pub power: PowerSpec,
    /// The rescue system that it boots instead of its own disk; null without a rescue.
    #[serde(default)]
    pub rescue: Option<RescueSpec>,
    /// When to restart a guest that stops on its own.
    pub restart: RestartPolicy,
    /// Instances with a higher priority start earlier and stop later; 0 by default.
    pub priority: i32,
    /// Whether the instance is protected against deletion.
    pub protected: bool,
    /// Disks; the instance boots from the first one, which is named `root`.
    pub disks: Vec<DiskSpec>,
    /// Nics; the first one has the default route.
    pub nics: Vec<NicSpec>,
    /// Ports of the node that are published to the guest.
    pub publish: Vec<PublishSpec>,
    /// Which packets may pass the nics.
    #[serde(default)]
    pub firewall: FirewallSpec,
    /// Requirements for the node.
    pub placement: PlacementSpec,
    /// Size and digest of the user-data; null without user-data. Reading the text requires the role `operator` (`GET
    /// /v1/instances/{name}/user-data`).
    pub user_data: Option<UserDataFacts>,
}

/// When to restart a guest that stops on its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// After a crash and after the guest powered itself off.
    Always,
    /// After a crash; a guest that powers itself off stays off.
    #[default]
    OnCrash,
    /// Never.
    Never,
}

/// A disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiskSpec {
    /// Name, unique within the instance.
    pub name: Name,
    /// Size in bytes, as the guest sees it.
    pub size_bytes: ByteSize,
    /// Name of the storage pool.
    pub pool: Name,
}

/// A nic.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NicSpec {
    /// Name, unique within the instance.
    pub name: Name,
    /// Name of the network; `default` is the routed subnet of the node.
    pub network: Name,
    /// MAC address; it does not change.
    pub mac: MacAddr,
    /// The assigned address. On `default`, null until the instance is placed. On a named bridge, null unless the user
    /// gave one: then a DHCP server there assigns the address, and waifud observes it.
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// Prefix length of the address, 1 to 32; set if and only if an address was given on a named bridge.
    #[serde(default)]
    pub prefix_len: Option<u8>,
    /// Gateway of that network; only if an address was given on a named bridge.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub gateway: Option<Ipv4Addr>,
    /// The VLAN of the nic on its bridge, 1 to 4094; absent without one. Only on a named bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u16>)]
    pub vlan: Option<VlanId>,
    /// Additional source addresses that the guest may use.
    #[schema(value_type = Vec<String>)]
    pub allow_addresses: Vec<IpNet>,
}

impl NicSpec {
    /// The number in its name, for example 1 in `eth1`. It determines the port on the node, and stays the same when other nics
    /// are removed. `None` if the name has another form.
    pub fn number(&self) -> Option<usize> {
        self.name.as_str().strip_prefix("eth")?.parse().ok()
    }
}

impl InstanceSpec {
    /// The nics with their numbers; see [`NicSpec::number`].
    pub fn numbered_nics(&self) -> impl Iterator<Item = (usize, &NicSpec)> {
        let nics = self.nics.iter().enumerate();
        nics.map(|(position, nic)| (nic.number().unwrap_or(position), nic))
    }
}

/// A published port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
pub struct PublishSpec {
    /// Port on the addresses of the node.
    pub port: u16,
    /// Port of the guest.
    pub guest_port: u16,
    /// Transport protocol.
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

names! {
    /// The name in the API and in firewall rules.
    Protocol {
        Tcp => "tcp",
        Udp => "udp",
    }
}

impl std::fmt::Display for PublishSpec {
    /// `80/tcp`, or `8080:80/tcp` if the guest's port differs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.port)?;
        if self.guest_port != self.port {
            write!(f, ":{}", self.guest_port)?;
        }
        write!(f, "/{}", self.protocol.as_str())
    }
}

/// Requirements for the node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct PlacementSpec {
    /// Name of the node; null if waifud chooses.
    pub node: Option<Name>,
    /// Labels that the node must have.
    #[serde(default)]
    pub require: BTreeMap<String, String>,
    /// Placement on different nodes than others of the same group.
    pub spread: Option<SpreadSpec>,
    /// Name of an instance whose node is preferred, if it is suitable; null without a preference.
    #[serde(default)]
    pub near: Option<Name>,
}

/// Placement of a group of instances on different nodes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SpreadSpec {
    /// Name of the group.
    pub group: Name,
    /// Whether the instance stays pending rather than sharing a node.
    pub strict: bool,
}

/// Facts about user-data that do not reveal its text.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct UserDataFacts {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Digest of the text.
    pub sha256: Digest,
    /// What prevents cloud-init from reporting to waifud; absent if nothing does.
    #[serde(
        default,
        deserialize_with = "known_or_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub unreported: Option<Unreported>,
    /// Whether the user-data replaces the final message that cloud-init writes to the console (`final_message`); absent if
    /// it does not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replaces_final_message: bool,
}

/// What in user-data prevents cloud-init from reporting to waifud. Its end is then detected only through the guest
/// agent, by its message on the console or, if vendor-data is read, through phone-home at the end of the first boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Unreported {
    /// `vendor_data: {enabled: false}`.
    VendorDataDisabled,
    /// `reporting` replaces waifud's reporter.
    ReporterOverridden,
    /// A part of the user-data has one of these keys; the effect depends on how cloud-init merges the parts.
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

/// Limits that are checked by the API and when a spec is built.
pub mod limits {
    use crate::ByteSize;

    /// Maximum size of user-data: 1 MiB.
    pub const USER_DATA_MAX: u64 = 1 << 20;
    /// Maximum number of CPUs; the default limit of QEMU's q35.
    pub const CPUS_MAX: u32 = 255;
    /// Minimum memory; no known guest boots with less.
    pub const MEMORY_MIN: ByteSize = ByteSize::mib(64);
    /// Maximum memory: 16 TiB; more is assumed to be a typing error.
    pub const MEMORY_MAX: ByteSize = ByteSize::gib(16 * 1024);
    /// The smallest disk: 1 MiB.
    pub const DISK_MIN: ByteSize = ByteSize::mib(1);
    /// The largest disk: 64 TiB, which qcow2 with 64 KiB clusters still holds.
    pub const DISK_MAX: ByteSize = ByteSize::gib(64 * 1024);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_port_is_shown_with_the_guests_port_only_if_that_differs() {
        let shown = |port, guest_port, protocol| {
            let publish = PublishSpec {
                port,
                guest_port,
                protocol,
            };
            publish.to_string()
        };
        assert_eq!(shown(80, 80, Protocol::Tcp), "80/tcp");
        assert_eq!(shown(8080, 80, Protocol::Udp), "8080:80/udp");
    }

    #[test]
    fn the_number_of_a_nic_is_that_in_its_name() {
        let number = |name: &str| {
            let nic = NicSpec {
                name: name.parse().unwrap(),
                network: "default".parse().unwrap(),
                mac: MacAddr::of_guest([0, 0, 1]),
                address: None,
                prefix_len: None,
                gateway: None,
                vlan: None,
                allow_addresses: Vec::new(),
            };
            nic.number()
        };
        assert_eq!(number("eth0"), Some(0));
        assert_eq!(number("eth12"), Some(12));
        assert_eq!(number("lan"), None);
        assert_eq!(number("eth"), None);
    }

    #[test]
    fn a_nic_from_before_vlans_is_readable_and_stays_the_same() {
        let old = serde_json::json!({"name": "eth0", "network": "lan", "mac": "52:54:00:00:00:01", "address": null,
            "prefix_len": null, "gateway": null, "allow_addresses": []});
        let nic: NicSpec = serde_json::from_value(old.clone()).unwrap();
        assert_eq!(nic.vlan, None);
        assert_eq!(serde_json::to_value(nic).unwrap(), old);
        let invalid = |vlan: u16| {
            let mut nic = old.clone();
            nic["vlan"] = vlan.into();
            serde_json::from_value::<NicSpec>(nic).is_err()
        };
        assert!(invalid(0) && invalid(4095) && !invalid(20));
    }

    #[test]
    fn a_placement_from_before_near_is_readable() {
        let old = r#"{"node": "alder", "require": {}, "spread": null}"#;
        let placement: PlacementSpec = serde_json::from_str(old).unwrap();
        assert_eq!(placement.near, None);
        let json = serde_json::to_value(placement).unwrap();
        assert_eq!(json["near"], serde_json::Value::Null, "null, not absent");
    }

    #[test]
    fn the_limits_have_the_values_of_their_documentation() {
        assert_eq!(limits::USER_DATA_MAX, 1_048_576);
        assert_eq!(limits::MEMORY_MAX.to_string(), "16T");
        assert_eq!(limits::DISK_MAX.to_string(), "64T");
    }
}
