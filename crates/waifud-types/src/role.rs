//! What a principal may do.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A principal's role; each may do what the one before it may.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees everything but secrets: user-data as size and digest, no console.
    Viewer,
    /// Makes, changes and destroys instances and templates; consoles, logs, SSH, forwards, user-data.
    Operator,
    /// Nodes, networks, tokens, backups.
    Admin,
}

impl Role {
    /// The word that the wire and tables use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_ordered_by_what_they_may() {
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
    }
}
