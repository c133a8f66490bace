//! The kinds of storage pools.

use std::{convert::Infallible, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The kind of a storage pool.
///
/// Nodes report the kinds of their pools. A newer node may report a kind that this version does not know: it is kept and
/// shown as it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum PoolKind {
    /// qcow2 overlays on any filesystem.
    Qcow2,
    /// Clones of files, on a filesystem that supports them.
    Reflink,
    /// A kind that this version does not know.
    Other(String),
}

impl PoolKind {
    /// The kind's name on the wire and in configuration files.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Reflink => "reflink",
            Self::Other(name) => name,
        }
    }
}

impl From<String> for PoolKind {
    fn from(name: String) -> Self {
        match name.as_str() {
            "qcow2" => Self::Qcow2,
            "reflink" => Self::Reflink,
            _ => Self::Other(name),
        }
    }
}

impl From<PoolKind> for String {
    fn from(kind: PoolKind) -> Self {
        match kind {
            PoolKind::Other(name) => name,
            known => known.as_str().to_owned(),
        }
    }
}

impl FromStr for PoolKind {
    type Err = Infallible;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Ok(name.to_owned().into())
    }
}

impl fmt::Display for PoolKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_keep_their_names_on_the_wire_and_unknown_ones_are_readable() {
        for (kind, name) in [
            (PoolKind::Qcow2, "qcow2"),
            (PoolKind::Reflink, "reflink"),
            (PoolKind::Other("zfs".to_owned()), "zfs"),
        ] {
            let json = serde_json::to_value(&kind).unwrap();
            assert_eq!(json, name);
            assert_eq!(serde_json::from_value::<PoolKind>(json).unwrap(), kind);
            assert_eq!(name.parse(), Ok(kind));
        }
    }
}
