//! Templates and images on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{ByteSize, Digest, Timestamp};

/// `POST /v1/templates`: names an image that was uploaded. The same name again points at the new image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTemplate {
    /// Such as `debian-12`.
    pub name: String,
    /// The uploaded image.
    pub image: Digest,
    /// `x86_64` by default.
    #[serde(default)]
    pub arch: Option<String>,
    /// How its guests find their documents.
    #[serde(default)]
    pub datasource: Datasource,
    /// What starts its boot loader.
    #[serde(default)]
    pub firmware: Firmware,
    /// The user that cloud-init makes.
    #[serde(default)]
    pub default_user: Option<String>,
}

/// `GET /v1/images/{digest}` (JSON), and the answer to an upload.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// The digest of its file.
    pub digest: Digest,
    /// Bytes of its file.
    pub size_bytes: ByteSize,
    /// The size that a guest sees.
    pub virtual_size_bytes: ByteSize,
    /// Whether waifud has the file. Without it, new nodes can't get the image until it is uploaded or downloaded again.
    #[serde(default = "yes")]
    pub available: bool,
    /// When it was uploaded.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
}

/// What a waifud that does not say so means.
fn yes() -> bool {
    true
}
