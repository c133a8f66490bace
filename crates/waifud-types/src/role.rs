//! Roles of principals.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The role of a principal; each includes the permissions of the previous one.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Can read everything except user-data (only its size and digest), descriptions, consoles, logs and tokens.
    Viewer,
    /// Can create, change and delete instances, templates and images, connect to guests, and read logs, descriptions and
    /// user-data.
    Operator,
    /// Can manage nodes, networks, tokens, join tokens and unmanaged instances.
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
