//! Rescue: an instance boots another image with its own disks attached, so that they can be repaired.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::template::{Datasource, Firmware};
use crate::{Digest, Name};

/// The rescue system that an instance boots instead of its own disk. It gets a disk named `rescue`, which is created
/// from the image and deleted at the end. The instance's own disks are attached after it, unchanged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RescueSpec {
    /// Name of the template.
    pub template: Name,
    /// The template's image at the time of the order.
    pub image: Digest,
    /// How the rescue system finds its metadata.
    pub datasource: Datasource,
    /// The firmware that starts the boot loader.
    pub firmware: Firmware,
    /// Public SSH keys for the rescue system, in addition to those of the instance.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
}

/// An order to begin or end a rescue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum RescueOrder {
    /// Boot the rescue system.
    Begin(RescueBegin),
    /// Boot the instance's own disk again.
    End,
}

/// The rescue system to boot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RescueBegin {
    /// Name of the template; a small one is sufficient.
    pub template: String,
    /// Public SSH keys for the rescue system, in addition to those of the instance.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
}
