//! Roles of principals.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The role of a principal; each includes the permissions of the previous one.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Can read everything except secrets: user-data only as size and digest, no console.
    Viewer,
    /// Can create, change and destroy instances and templates, and use consoles, logs, SSH, forwards and user-data.
    Operator,
    /// Can manage nodes, networks, tokens and backups.
    Admin,
}

names! {
    /// The name in the API and in tables.
    Role {
        Viewer => "viewer",
        Operator => "operator",
        Admin => "admin",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_ordered_by_their_permissions() {
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
    }
}
