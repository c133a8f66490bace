//! Templates: the names people use for images, and what has to be known to boot one.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ByteSize, Checksum, Digest, Name, Timestamp};

/// How the guest finds its documents.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Datasource {
    /// OpenStack's, over HTTP at 169.254.169.254, announced by the DMI product name.
    #[default]
    Openstack,
    /// EC2's, over HTTP at 169.254.169.254 with and without session tokens, announced by a DMI UUID that begins with
    /// `ec2`.
    Ec2,
    /// NoCloud's, over HTTP at 169.254.169.254, announced by the DMI serial number.
    Nocloud,
    /// NoCloud's, from a small disk labelled `cidata`: needs no network.
    Cidata,
}

/// What a DMI serial number says, so that cloud-init fetches its documents here: one text for all versions seen.
///
/// 22.4 (Debian 12) takes `ds=nocloud` alone for a local source and stops at the address, unless `dsmode` says otherwise;
/// 25.1 (Debian 13) goes by the address, and calls the older way out, `ds=nocloud-net`, deprecated, which ends in
/// "degraded". Both need the slash at the end.
pub const NOCLOUD_SEED: &str = "ds=nocloud;dsmode=net;s=http://169.254.169.254/nocloud/";

impl Datasource {
    /// Every datasource, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Openstack, Self::Ec2, Self::Nocloud, Self::Cidata];

    /// As on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Openstack => "openstack",
            Self::Ec2 => "ec2",
            Self::Nocloud => "nocloud",
            Self::Cidata => "cidata",
        }
    }

    /// Whether the guest can't find its documents without the metadata service.
    pub const fn needs_metadata(self) -> bool {
        !matches!(self, Self::Cidata)
    }
}

/// What starts the guest's boot loader.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// OVMF, without Secure Boot; its variables are kept beside the domain and go with it.
    Uefi,
}

impl Firmware {
    /// Every firmware.
    pub const ALL: [Self; 2] = [Self::Bios, Self::Uefi];

    /// As on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Uefi => "uefi",
        }
    }
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
    /// Where its image comes from; null when it was uploaded, or downloaded before waifud remembered that.
    #[serde(default)]
    pub source: Option<TemplateOrigin>,
    /// Every image it ever pointed at, newest first.
    pub revisions: Vec<TemplateRevision>,
}

/// Where a template's image comes from, as it was asked for: what a refresh asks again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TemplateOrigin {
    /// The image.
    pub url: String,
    /// The entry of the catalog that gave the URL.
    pub catalog: Option<String>,
    /// The checksum that was given; null when the publisher's list is asked.
    pub checksum: Option<Checksum>,
    /// The publisher's list of checksums.
    pub checksums_url: Option<String>,
    /// What the image is called in that list, if not like the URL's last part.
    pub checksums_file: Option<String>,
    /// Whether https alone was to prove it.
    pub insecure_no_checksum: bool,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_on_the_wire() {
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
