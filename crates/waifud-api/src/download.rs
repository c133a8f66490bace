//! Downloads of images, and the catalog of well-known images.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{ByteSize, Checksum, Name, Timestamp};

use crate::Problem;

/// `POST /v1/downloads`: downloads an image and creates a template from it.
///
/// The image comes from `url` or, without it, from the catalog: from the entry `catalog`, by default the one with the
/// template's name. Other fields override those of the entry.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateDownload {
    /// Name of the template. An existing template refers to the new image afterwards.
    pub name: String,
    /// An entry of the catalog.
    pub catalog: Option<String>,
    /// URL of the image: https, or http with a checksum.
    pub url: Option<String>,
    /// The publisher's checksum of the image.
    pub checksum: Option<Checksum>,
    /// URL of the publisher's list of checksums; https.
    pub checksums_url: Option<String>,
    /// File name of the image in that list; the last part of `url` by default.
    pub checksums_file: Option<String>,
    /// Downloads over https without verifying a checksum.
    #[serde(default)]
    pub insecure_no_checksum: bool,
    /// `x86_64` by default.
    pub arch: Option<String>,
    /// How its guests find their metadata and user-data.
    pub datasource: Option<Datasource>,
    /// The firmware that starts the boot loader.
    pub firmware: Option<Firmware>,
    /// The user that cloud-init creates in guests.
    pub default_user: Option<String>,
}

/// A download of an image for a template. It is removed once the template exists.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Download {
    /// Name of the template.
    pub name: Name,
    /// State of the download.
    pub state: DownloadState,
    /// URL of the image.
    pub source_url: String,
    /// The publisher's checksum; null until it is known, or if there is none.
    pub checksum: Option<Checksum>,
    /// Bytes downloaded so far.
    pub done_bytes: ByteSize,
    /// Size of the image in bytes; null until it is known.
    pub total_bytes: Option<ByteSize>,
    /// Why the download is interrupted and that it will be retried; null while it makes progress.
    pub waiting_for: Option<String>,
    /// Why the download failed; null unless it failed.
    pub error: Option<Problem>,
    /// Time of the request.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
}

/// State of a download.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DownloadState {
    /// In progress; also continues after a restart of waifud.
    Running,
    /// Failed; a new request starts it again.
    Failed,
    /// A state that this version does not know.
    #[serde(other)]
    Other,
}

/// An image in the catalog.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct CatalogEntry {
    /// Default name of a template created from it.
    pub name: Name,
    /// Title for users.
    pub title: String,
    /// `x86_64` or `aarch64`.
    pub arch: String,
    /// URL of the image.
    pub url: String,
    /// URL of the publisher's list of checksums.
    pub checksums_url: String,
    /// The user that cloud-init creates in guests.
    pub default_user: String,
    /// Minimum memory that guests need to boot reliably.
    pub min_memory_bytes: ByteSize,
    /// The firmware that starts the boot loader.
    #[serde(default)]
    pub firmware: Firmware,
    /// How its guests find their metadata and user-data.
    #[serde(default)]
    pub datasource: Datasource,
    /// Notes for users; null if there are none.
    pub notes: Option<String>,
}
