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
    /// Number of reboots ordered so far. After a restore of waifud's database, the next reboot has a number above all that
    /// were ordered before.
    pub reboots: u64,
    /// Whether the last reboot powers off instead of shutting the guest down.
    pub force_reboot: bool,
}

impl PowerSpec {
    /// Orders a reboot. `floor` is above every number that was ordered before a restore of waifud's database, 0 if it was
    /// never restored: the node may have executed reboots that the database does not contain.
    pub fn order_reboot(&mut self, floor: u64, how: Reboot) {
        self.reboots = self.reboots.saturating_add(1).max(floor);
        self.force_reboot = how == Reboot::Force;
    }
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
