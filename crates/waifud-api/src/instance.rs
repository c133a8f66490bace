//! Instances on the wire.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::spec::{InstanceSpec, PlacementSpec, Protocol, PublishSpec, RestartPolicy};
use waifud_types::status::InstanceStatus;
use waifud_types::{
    ByteSize, Generation, InstanceId, MacAddr, Name, Reboot, RescueOrder, Secret, Timestamp,
};

/// An instance, as `list` and `show` print it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Its name, unique among living instances.
    pub name: Name,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Counts changes of the spec; the `ETag`.
    pub generation: Generation,
    /// When it was created.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// What people want.
    pub spec: InstanceSpec,
    /// What is.
    pub status: InstanceStatus,
}

/// `POST /v1/instances`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateInstance {
    /// A name is made up when there is none.
    #[serde(default)]
    pub name: Option<String>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The template's name.
    pub template: String,
    /// 1 by default.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// 1 GiB by default.
    #[serde(default)]
    pub memory_bytes: Option<ByteSize>,
    /// The root disk's size; the template's own or 10 GiB, whichever is larger, by default.
    #[serde(default)]
    pub disk_bytes: Option<ByteSize>,
    /// The pool of the root disk; `main` by default.
    #[serde(default)]
    pub pool: Option<String>,
    /// cloud-init's user-data, as text: `#cloud-config` YAML, a script, or MIME.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub user_data: Option<Secret<String>>,
    /// Public SSH keys in OpenSSH's one-line form.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// Whether it should be started; true by default.
    #[serde(default)]
    pub run: Option<bool>,
    /// What happens when it stops by itself.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Higher starts earlier.
    #[serde(default)]
    pub priority: i32,
    /// Whether delete is refused.
    #[serde(default)]
    pub protected: bool,
    /// A fixed MAC address for the first nic; one is chosen by default.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// Nics, at most 8; one on `default` without any. The first has the default route.
    #[serde(default)]
    pub nics: Vec<CreateNic>,
    /// Ports of its node that lead to it.
    #[serde(default)]
    pub publish: Vec<Publish>,
    /// Wishes about the node.
    #[serde(default)]
    pub placement: PlacementSpec,
}

/// A nic to be.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNic {
    /// The network's name; `default` without one.
    #[serde(default)]
    pub network: Option<String>,
    /// A fixed address. On `default` one of its node's subnet, so it also says which node; one is chosen by default. On a
    /// bridge with its prefix, such as `192.168.1.50/24`; without one the DHCP server there gives it.
    #[serde(default)]
    pub address: Option<String>,
    /// With an address on a bridge: the router there, which is asked for names too. The first nic's only.
    #[serde(default)]
    pub gateway: Option<String>,
    /// Further addresses that the guest may send from: single ones or ranges, such as `192.168.1.200` or
    /// `10.244.0.0/16`. On `default` IPv4 only.
    #[serde(default)]
    pub allow_addresses: Vec<String>,
    /// A fixed MAC address; one is chosen by default.
    #[serde(default)]
    pub mac: Option<MacAddr>,
}

/// A port to publish on the node's addresses.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// On the node's addresses.
    pub port: u16,
    /// In the guest; the same without one.
    #[serde(default)]
    pub guest_port: Option<u16>,
    /// `tcp` by default.
    #[serde(default)]
    pub protocol: Protocol,
}

impl From<&PublishSpec> for Publish {
    fn from(spec: &PublishSpec) -> Self {
        Self {
            port: spec.port,
            guest_port: Some(spec.guest_port),
            protocol: spec.protocol,
        }
    }
}

/// `PATCH /v1/instances/{name}`: what is absent stays as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateInstance {
    /// Start or stop it.
    #[serde(default)]
    pub run: Option<bool>,
    /// With `run` false: pull the plug at once, also when it was asked to shut down before.
    #[serde(default)]
    pub force: bool,
    /// Reboot it, once: it is shut down and started again. One that is off is started.
    #[serde(default)]
    pub reboot: Option<Reboot>,
    /// Boot another template with its disks attached, or its own disk again. It is rebooted for it, or started; with
    /// `reboot` as `force` by pulling its plug.
    #[serde(default)]
    pub rescue: Option<RescueOrder>,
    /// Virtual CPUs from the next start on.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Memory from the next start on.
    #[serde(default)]
    pub memory_bytes: Option<ByteSize>,
    /// The root disk's size from now on; it can only grow.
    #[serde(default)]
    pub disk_bytes: Option<ByteSize>,
    /// Protect it from deletion, or no longer.
    #[serde(default)]
    pub protected: Option<bool>,
    /// All published ports; those that are not among them are published no more.
    #[serde(default)]
    pub publish: Option<Vec<Publish>>,
    /// New user-data; the next boot reads it, without a re-run of what is done once per instance.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub user_data: Option<Secret<String>>,
    /// True: the next boot is a first boot for cloud-init, and does again what is done once per instance.
    #[serde(default)]
    pub re_run: bool,
    /// Labels to set; null removes one. Labels that are not named stay, and the generation does not count them.
    #[serde(default)]
    pub labels: BTreeMap<String, Option<String>>,
    /// What happens when it stops by itself.
    #[serde(default)]
    pub restart: Option<RestartPolicy>,
    /// Higher starts earlier and stops later.
    #[serde(default)]
    pub priority: Option<i32>,
    /// Wishes about the node, all of them: they replace the ones before. A placed instance is not moved.
    #[serde(default)]
    pub placement: Option<PlacementSpec>,
}

/// `GET /v1/instances/{name}/why`: the story of one instance, from its events and its status.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Why {
    /// The instance as it is.
    pub instance: Instance,
    /// One sentence: what it is and what it waits for.
    pub summary: String,
    /// How its node was chosen, or why none could be.
    pub placement: Vec<PlacementVerdict>,
    /// Its events, oldest first, at most 100.
    pub timeline: Vec<waifud_types::event::Event>,
    /// What to do next; null when all is well.
    pub hint: Option<String>,
    /// What the guest was seen to do since its start; null when its node has not told since waifud's own start.
    #[serde(default)]
    pub evidence: Option<waifud_types::evidence::GuestEvidence>,
}

/// One node's part in a choice.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PlacementVerdict {
    /// The node's name.
    pub node: Name,
    /// 0 to 1, higher is better; null when it could not take the instance.
    pub score: Option<f64>,
    /// In words: free room, or what is missing.
    pub reason: String,
}
