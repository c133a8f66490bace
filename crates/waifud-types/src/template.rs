//! Templates: the names people use for images, and what has to be known to boot one.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ByteSize, Digest, Name, Timestamp};

/// How the guest finds its documents.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Datasource {
    /// OpenStack's, over HTTP at 169.254.169.254, announced by the DMI product name.
    #[default]
    Openstack,
}

/// What starts the guest's boot loader.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
}

/// A template as the API shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Template {
    /// Such as `debian-12`.
    pub name: Name,
    /// How its guests find their documents.
    pub datasource: Datasource,
    /// What starts its boot loader.
    pub firmware: Firmware,
    /// The user that cloud-init makes, such as `debian`.
    pub default_user: Option<String>,
    /// No disk may be smaller: the image's virtual size.
    pub min_disk_bytes: ByteSize,
    /// The image that new instances get.
    pub current: Digest,
    /// How many living instances came from it.
    pub used_by: u64,
    /// Every image it ever pointed at, newest first.
    pub revisions: Vec<TemplateRevision>,
}

/// One image of a template.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TemplateRevision {
    /// The image.
    pub image: Digest,
    /// `x86_64` or `aarch64`.
    pub arch: String,
    /// Where it came from; null when uploaded.
    pub source_url: Option<String>,
    /// The checksum that its publisher named; null when uploaded.
    pub checksum: Option<String>,
    /// When it was added.
    #[schema(value_type = String)]
    pub seen_at: Timestamp,
    /// Bytes of the image file.
    pub size_bytes: ByteSize,
}
