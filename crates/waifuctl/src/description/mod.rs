//! The description of an instance as people write it in files: `create -f`, `show -o yaml` and `edit --spec`.

mod cloud_config;
mod convert;
mod differs;
mod nearest;
mod nics;
mod parse;
mod print;
mod schema;
mod size;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use waifud_types::spec::RestartPolicy;
use waifud_types::{MacAddr, Name};

pub use self::cloud_config::CloudConfig;
pub use self::convert::{Source, from_request, request};
pub use self::differs::differs;
pub use self::nics::{nic, same as same_nics};
pub use self::parse::{Document, parse};
pub use self::print::yaml;
pub use self::schema::schema;
pub use self::size::Size;

/// Reads null, or a key without a value, as what is left out.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// An instance. What is left out is waifud's default.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(title = "waifud instance")]
pub struct Description {
    /// Its name, a DNS label; made up when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub name: Option<String>,
    /// The template's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = true)]
    pub template: Option<String>,
    /// Labels.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "or_default"
    )]
    pub labels: BTreeMap<String, String>,
    /// Virtual CPUs; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory, such as 2G; 1G by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub memory: Option<Size>,
    /// Disks; for now one, the root disk.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub disks: Vec<DiskDescription>,
    /// Nics, the first of which has the default route; one on the network `default` without any.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub nics: Vec<NicDescription>,
    /// Ports of its node that lead to it, such as `80`, `8080:80` or `53/udp`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub publish: Vec<String>,
    /// Public SSH keys, or files that hold some; without this field the caller's own, with an empty list none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_keys: Option<Vec<String>>,
    /// cloud-init's user-data as text: `#cloud-config` YAML, a script or MIME.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// User-data from a file; a relative path starts where the description lies.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub user_data_file: Option<PathBuf>,
    /// User-data as a mapping: what follows `#cloud-config`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub cloud_config: Option<CloudConfig>,
    /// Whether it should run; true by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<bool>,
    /// What happens when it stops by itself; on-crash by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<RestartPolicy>)]
    pub restart: Option<RestartPolicy>,
    /// Higher starts earlier and stops later; 0 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Whether delete is refused; false by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protected: Option<bool>,
    /// Wishes about the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementDescription>,
}

/// One disk.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DiskDescription {
    /// `root`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
    /// Its size, such as 20G; the template's own or 10G, whichever is larger, by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub size: Option<Size>,
    /// Its pool; `main` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

/// One nic.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NicDescription {
    /// The network's name; `default` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// A fixed address: on `default` one of its node's subnet, and one is chosen by default; on a bridge with its prefix,
    /// such as 192.168.1.50/24, and the DHCP server there gives one by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// With an address on a bridge: the router there; the first nic's only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Further addresses or ranges that the guest may send from.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub allow_addresses: Vec<String>,
    /// A fixed MAC address; one is chosen by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub mac: Option<MacAddr>,
}

/// Wishes about the node.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementDescription {
    /// Exactly this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub node: Option<Name>,
    /// Labels that the node must have.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "or_default"
    )]
    pub require: BTreeMap<String, String>,
    /// On other nodes than others of its group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<SpreadDescription>,
}

/// Keep instances of one group on different nodes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SpreadDescription {
    /// The group's name.
    #[schema(value_type = String)]
    pub group: Name,
    /// Whether to wait rather than share a node; false by default.
    #[serde(default, deserialize_with = "or_default")]
    pub strict: bool,
}
