//! Images by URL, and the catalog of well-known ones, on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{ByteSize, Checksum, Name, Timestamp};

use crate::Problem;

/// `POST /v1/downloads`: waifud fetches an image and makes it a template.
///
/// With `url`, from there. Without it, from the catalog: the entry that `catalog` names, or else the one that is named
/// like the template; what is given beside outranks the entry.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateDownload {
    /// The template's name. One that exists points at the new image afterwards.
    pub name: String,
    /// An entry of the catalog.
    #[serde(default)]
    pub catalog: Option<String>,
    /// Where the image is: https, or http together with a checksum.
    #[serde(default)]
    pub url: Option<String>,
    /// The publisher's checksum of the image.
    #[serde(default)]
    pub checksum: Option<Checksum>,
    /// Where the publisher's list of checksums is; https.
    #[serde(default)]
    pub checksums_url: Option<String>,
    /// What the image is called in that list; the last part of `url` by default.
    #[serde(default)]
    pub checksums_file: Option<String>,
    /// Takes whatever https gives, without a checksum.
    #[serde(default)]
    pub insecure_no_checksum: bool,
    /// `x86_64` by default.
    #[serde(default)]
    pub arch: Option<String>,
    /// How its guests find their documents.
    #[serde(default)]
    pub datasource: Option<Datasource>,
    /// What starts its boot loader.
    #[serde(default)]
    pub firmware: Option<Firmware>,
    /// The user that cloud-init makes.
    #[serde(default)]
    pub default_user: Option<String>,
}

/// A template on its way. When it is there, the template is and this is not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Download {
    /// The template's name.
    pub name: Name,
    /// Whether it goes on.
    pub state: DownloadState,
    /// Where from.
    pub source_url: String,
    /// The publisher's checksum; null until it is known, or without one.
    pub checksum: Option<Checksum>,
    /// Bytes that are here.
    pub done_bytes: ByteSize,
    /// Bytes of the whole; null until it is known.
    pub total_bytes: Option<ByteSize>,
    /// What keeps it, and that it will be tried again; null while bytes flow.
    pub waiting_for: Option<String>,
    /// Why it failed; null unless it did.
    pub error: Option<Problem>,
    /// When somebody asked for it.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
}

/// Whether a download goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DownloadState {
    /// It goes on by itself, also after a restart of waifud.
    Running,
    /// It will not go on until somebody asks again.
    Failed,
}

/// An image that the catalog knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CatalogEntry {
    /// What a template made from it is called by default.
    pub name: Name,
    /// What it is.
    pub title: String,
    /// `x86_64` or `aarch64`.
    pub arch: String,
    /// Where it is.
    pub url: String,
    /// Where its publisher's checksums are.
    pub checksums_url: String,
    /// The user that cloud-init makes.
    pub default_user: String,
    /// A guest with less memory does not boot well.
    pub min_memory_bytes: ByteSize,
    /// What starts its boot loader.
    #[serde(default)]
    pub firmware: Firmware,
    /// How its guests find their documents.
    #[serde(default)]
    pub datasource: Datasource,
    /// What has to be known; null when nothing.
    #[serde(default)]
    pub notes: Option<String>,
}
