//! Rescue: an instance that boots another image, with its own disks attached, so that somebody can mend them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::template::{Datasource, Firmware};
use crate::{Digest, Name};

/// What an instance boots in place of its own disk. A disk of its own is made of the image for it, called `rescue`, and
/// thrown away at the end; the instance's own disks come after it, unchanged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RescueSpec {
    /// The template that was asked for.
    pub template: Name,
    /// The image that it pointed at then.
    pub image: Digest,
    /// How the system in it finds its documents.
    pub datasource: Datasource,
    /// What starts its boot loader.
    pub firmware: Firmware,
    /// Public SSH keys that are let in beside the instance's own.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
}

/// An order to begin or to end it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum RescueOrder {
    /// Boot this instead.
    Begin(RescueBegin),
    /// Boot its own disk again.
    End,
}

/// What to boot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RescueBegin {
    /// The template's name; a small one does.
    pub template: String,
    /// Public SSH keys to let in beside the instance's own.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
}
