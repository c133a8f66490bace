//! Power-off and reboot orders as desired state.
//!
//! Reboots are counted: the node compares the count with the last one that it has executed. So it executes each order
//! at most once, even if a daemon is killed in between.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Power-off and reboot orders.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct PowerSpec {
    /// With `run` false: power off immediately, without shutting the guest down.
    pub force_off: bool,
    /// Number of reboots ordered so far.
    pub reboots: u64,
    /// Whether the last reboot powers off instead of shutting the guest down.
    pub force_reboot: bool,
}

/// How to reboot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reboot {
    /// Shut the guest down first.
    Clean,
    /// Power off immediately.
    Force,
}
