//! Templates: names for images, and what is needed to boot them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ByteSize, Checksum, Digest, Name, Timestamp};

/// How a guest finds its metadata and user-data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Datasource {
    /// OpenStack, over HTTP at 169.254.169.254, announced by the DMI product name.
    #[default]
    Openstack,
    /// EC2, over HTTP at 169.254.169.254 with and without session tokens, announced by a DMI UUID that begins with
    /// `ec2`.
    Ec2,
    /// NoCloud, over HTTP at 169.254.169.254, announced by the DMI serial number.
    Nocloud,
    /// NoCloud, from a small disk labeled `cidata`; does not need a network.
    Cidata,
}

/// The TCP port of 169.254.169.254 that guests send their reports to. The node's rules lead it to port 80, or refuse it with
/// a reset while the metadata service does not answer, so that a guest never waits for an answer to a report. Documents
/// are requested at port 80, where waiting is correct.
pub const REPORT_PORT: u16 = 8169;

/// The DMI serial number with which cloud-init fetches its documents from waifud, for all tested versions.
///
/// 22.4 (Debian 12) treats `ds=nocloud` alone as a local source and ignores the URL unless `dsmode` is `net`. 25.1
/// (Debian 13) uses the URL and reports the older form `ds=nocloud-net` as deprecated, which ends in "degraded". Both
/// need the trailing slash.
pub const NOCLOUD_SEED: &str = "ds=nocloud;dsmode=net;s=http://169.254.169.254/nocloud/";

names! {
    /// The name in the API.
    Datasource {
        Openstack => "openstack",
        Ec2 => "ec2",
        Nocloud => "nocloud",
        Cidata => "cidata",
    }
}

impl Datasource {
    /// Every datasource, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Openstack, Self::Ec2, Self::Nocloud, Self::Cidata];

    /// Whether the guest needs the metadata service to find its documents.
    pub const fn needs_metadata(self) -> bool {
        !matches!(self, Self::Cidata)
    }
}

/// The firmware that starts the boot loader.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// OVMF without Secure Boot; its variables are stored with the domain and deleted with it.
    Uefi,
}

names! {
    /// The name in the API.
    Firmware {
        Bios => "bios",
        Uefi => "uefi",
    }
}

impl Firmware {
    /// Every firmware.
    pub const ALL: [Self; 2] = [Self::Bios, Self::Uefi];
}

/// A template.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Template {
    /// Name of the template, for example `debian-12`.
    pub name: Name,
    /// How its guests find their metadata and user-data.
    pub datasource: Datasource,
    /// The firmware that starts the boot loader.
    pub firmware: Firmware,
    /// The user that cloud-init creates in guests, for example `debian`.
    pub default_user: Option<String>,
    /// Minimum size of a disk: the virtual size of the image.
    pub min_disk_bytes: ByteSize,
    /// The image of new instances.
    pub current: Digest,
    /// Number of existing instances created from it.
    pub used_by: u64,
    /// Source of the image; null if it was uploaded, or downloaded by a version of waifud that did not record it.
    #[serde(default)]
    pub source: Option<TemplateOrigin>,
    /// All revisions, newest first.
    pub revisions: Vec<TemplateRevision>,
}

/// Source of a template's image, which a refresh uses again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TemplateOrigin {
    /// URL of the image.
    pub url: String,
    /// The catalog entry that the URL comes from; null if the user gave the URL.
    pub catalog: Option<String>,
    /// The checksum that the user gave; null if the publisher's list is used.
    pub checksum: Option<Checksum>,
    /// URL of the publisher's list of checksums.
    pub checksums_url: Option<String>,
    /// File name of the image in that list; null if it is the last part of the URL.
    pub checksums_file: Option<String>,
    /// Whether the image was downloaded over https without verifying a checksum.
    pub insecure_no_checksum: bool,
}

/// A revision of a template.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TemplateRevision {
    /// Digest of the image.
    pub image: Digest,
    /// `x86_64` or `aarch64`.
    pub arch: String,
    /// URL of the image; null if it was uploaded.
    pub source_url: Option<String>,
    /// The publisher's checksum; null if it was uploaded.
    pub checksum: Option<String>,
    /// Time when the revision was added.
    #[schema(value_type = String)]
    pub seen_at: Timestamp,
    /// Size of the image file in bytes.
    pub size_bytes: ByteSize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_their_serialized_form() {
        for datasource in Datasource::ALL {
            assert_eq!(
                serde_json::to_value(datasource).unwrap(),
                datasource.as_str()
            );
        }
        for firmware in Firmware::ALL {
            assert_eq!(serde_json::to_value(firmware).unwrap(), firmware.as_str());
        }
    }
}
