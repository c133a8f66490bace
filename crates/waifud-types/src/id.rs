//! Typed ids: an instance's id can never be passed where a node's is wanted.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::Name;

/// The text was not an id of the kind that was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not {what}")]
pub struct ParseIdError {
    text: String,
    what: &'static str,
}

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that came from elsewhere (a row, a wire, a generator).
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// A new id, UUID version 7 (RFC 9562): ids made later sort later.
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The UUID inside.
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text)
                    .map(Self)
                    .map_err(|_| ParseIdError { text: text.to_owned(), what: $what })
            }
        }
    };
}

typed_id!(
    /// Names one instance for ever; its name may be reused after it is gone, its id never.
    InstanceId,
    "an instance's id (a UUID)"
);
typed_id!(
    /// Names one node.
    NodeId,
    "a node's id (a UUID)"
);

typed_id!(
    /// Names one boot of a machine: what Linux says in `/proc/sys/kernel/random/boot_id`.
    BootId,
    "a boot's id (a UUID)"
);

/// Names one volume: the instance that it belongs to and the disk's name there. Written `INSTANCE.DISK`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId {
    /// The instance that owns the volume.
    pub instance: InstanceId,
    /// The disk's name in the instance's spec, such as `root`.
    pub disk: Name,
}

crate::schema::string_schema!(VolumeId, "VolumeId");

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.instance, self.disk)
    }
}

impl FromStr for VolumeId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseIdError {
            text: text.to_owned(),
            what: "a volume's id (INSTANCE.DISK)",
        };
        let (instance, disk) = text.split_once('.').ok_or_else(error)?;
        Ok(Self {
            instance: instance.parse()?,
            disk: disk.parse().map_err(|_| error())?,
        })
    }
}

impl TryFrom<String> for VolumeId {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<VolumeId> for String {
    fn from(id: VolumeId) -> Self {
        id.to_string()
    }
}

/// The name of a guest's port on its node: `wf-` and eight hexadecimal digits (11 bytes; Linux allows 15).
///
/// It follows from the instance's id and the index of the nic, so that rules can be written before the port exists.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TapName(String);

impl TapName {
    /// The prefix of every port of ours. The firewall drops what comes from a port with it that it does not know.
    pub const PREFIX: &'static str = "wf-";

    /// The port of nic number `index` of `instance`.
    pub fn of(instance: InstanceId, index: usize) -> Self {
        let bytes = instance.as_uuid().as_bytes();
        // The last four bytes of a version 7 UUID are random; the first ones are a clock and nearly equal.
        let tail = u32::from_be_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        Self(format!("{}{:08x}", Self::PREFIX, tail.wrapping_add(index)))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_id_survives_its_text() {
        let id = VolumeId {
            instance: InstanceId::generate(),
            disk: "root".parse().unwrap(),
        };
        assert_eq!(id.to_string().parse::<VolumeId>().unwrap(), id);
        assert!("root".parse::<VolumeId>().is_err());
    }

    #[test]
    fn tap_names_fit_linux_and_differ_by_nic() {
        let id = InstanceId::generate();
        let first = TapName::of(id, 0);
        assert_eq!(first.as_str().len(), 11);
        assert_ne!(first, TapName::of(id, 1));
    }
}
