//! Typed ids, so that the id of an instance cannot be passed as the id of a node.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::Name;

use crate::string_conversions;

/// The text is not an id of the expected kind.
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
            /// Wraps a UUID.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// Generates a UUID version 7 (RFC 9562): later ids sort later.
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The UUID.
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
    /// Identifies an instance. Unlike its name, the id is never reused.
    InstanceId,
    "an instance's id (a UUID)"
);
typed_id!(
    /// Identifies a node.
    NodeId,
    "a node's id (a UUID)"
);

typed_id!(
    /// Identifies one process of an agent. A random number.
    ProcessId,
    "a process's id (a UUID)"
);
typed_id!(
    /// Identifies one boot of a machine: `/proc/sys/kernel/random/boot_id` of Linux.
    BootId,
    "a boot's id (a UUID)"
);

/// Identifies a volume by its instance and the name of the disk. Written `INSTANCE.DISK`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId {
    /// The instance that owns the volume.
    pub instance: InstanceId,
    /// Name of the disk in the spec of the instance, for example `root`.
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

string_conversions!(VolumeId);

/// Name of a guest's port on its node: `wf-` and eight hexadecimal digits (11 bytes; Linux allows 15).
///
/// It is derived from the id of the instance and the index of the nic, so that rules can be created before the port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TapName(String);

impl TapName {
    /// Prefix of all ports of guests. The firewall drops packets from unknown ports with this prefix.
    pub const PREFIX: &'static str = "wf-";

    /// The port of nic number `index` of `instance`.
    pub fn of(instance: InstanceId, index: usize) -> Self {
        let bytes = instance.as_uuid().as_bytes();
        // The last four bytes of a version 7 UUID are random; the first ones are a timestamp and nearly equal.
        let tail = u32::from_be_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        Self(format!("{}{:08x}", Self::PREFIX, tail.wrapping_add(index)))
    }

    /// Parses the name of a port; `None` for the name of another interface.
    pub fn parse(name: &str) -> Option<Self> {
        let number = name.strip_prefix(Self::PREFIX)?;
        let digits = number
            .bytes()
            .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
        (number.len() == 8 && digits).then(|| Self(name.to_owned()))
    }

    /// The name.
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
    fn a_volume_id_is_unchanged_by_formatting_and_parsing() {
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
        assert_eq!(TapName::parse(first.as_str()), Some(first));
        for other in ["eth0", "wf-", "wf-0123456", "wf-012345678", "wf-0123456G"] {
            assert_eq!(TapName::parse(other), None, "{other}");
        }
    }
}
