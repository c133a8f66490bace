//! Templates and images in the API.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{ByteSize, Digest, Timestamp};

/// `POST /v1/templates`: creates a template from an uploaded image. An existing template gets the image as a new
/// revision.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTemplate {
    /// Name of the template, for example `debian-12`.
    pub name: String,
    /// The uploaded image.
    pub image: Digest,
    /// `x86_64` by default.
    pub arch: Option<String>,
    /// How its guests find their metadata and user-data.
    #[serde(default)]
    pub datasource: Datasource,
    /// The firmware that starts the boot loader.
    #[serde(default)]
    pub firmware: Firmware,
    /// The user that cloud-init creates in guests.
    pub default_user: Option<String>,
}

/// An image in waifud's image store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Digest of the image file.
    pub digest: Digest,
    /// Size of the image file in bytes.
    pub size_bytes: ByteSize,
    /// Virtual size of the image in bytes, as the guest sees it.
    pub virtual_size_bytes: ByteSize,
    /// Whether waifud has the image file. Without it, nodes that do not have the image cannot get it until it is
    /// uploaded or downloaded again.
    #[serde(default = "yes")]
    pub available: bool,
    /// Time of the upload or download.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
}

/// The value for a waifud that does not send the field.
fn yes() -> bool {
    true
}
