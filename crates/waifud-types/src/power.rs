//! Orders about an instance's power that go beyond "run" and "don't run", as desired state.
//!
//! A reboot is a count: the node carries out each order at most once, whoever is killed in between, because it compares
//! the count with the one that it remembers having carried out.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Orders about power.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct PowerSpec {
    /// When it should not run: the plug is pulled at once, without asking the guest.
    pub force_off: bool,
    /// How many reboots were ordered in its life.
    pub reboots: u64,
    /// The last of these pulls the plug rather than asks the guest.
    pub force_reboot: bool,
}

/// How to reboot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reboot {
    /// The guest is asked to shut down first.
    Clean,
    /// The plug is pulled.
    Force,
}
