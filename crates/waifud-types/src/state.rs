//! The states of an instance and which may follow which.
//!
//! ```text
//!            ┌────────────────────────── unknown ◄── (its node is not heard of; any state) ──┐
//!            ▼                                                                               │
//! pending ─► preparing ─► starting ─► running ◄─► paused                                     │
//!    │           │            │          │ │         │                                       │
//!    │           ▼            ▼          │ └► stopping ─► stopped ─► starting                │
//!    │         failed ◄───────┴──────────┘                  │                                │
//!    └───────────┴──────────────► deleting ◄────────────────┘ (from every state)
//! ```
//!
//! `moving` is entered from running or stopped and left for either. A failed instance is retried by its
//! node's driver, so it may go on to preparing or starting.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What an instance is doing, as people see it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum InstanceState {
    /// Waits for a node.
    Pending,
    /// Its node gets the image, the disk, the network and the documents ready.
    Preparing,
    /// The hypervisor starts it.
    Starting,
    /// It runs.
    Running,
    /// Halted in mid-air by the hypervisor: a full disk, or somebody's wish.
    Paused,
    /// Asked to shut down.
    Stopping,
    /// Off.
    Stopped,
    /// Between two nodes.
    Moving,
    /// Being destroyed; its name is free once this ends.
    Deleting,
    /// A step failed in a way that trying again will not mend by itself soon; the reason says which.
    Failed,
    /// Its node has not been heard of; `last_state` says what was true then.
    Unknown,
}

impl InstanceState {
    /// Every state, for tests and tables.
    pub const ALL: [Self; 11] = [
        Self::Pending,
        Self::Preparing,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Stopped,
        Self::Moving,
        Self::Deleting,
        Self::Failed,
        Self::Unknown,
    ];

    /// Whether there may be somebody in the guest to talk to. While it goes down there still is: its last words are on
    /// the console.
    pub const fn may_be_on(self) -> bool {
        match self {
            Self::Starting
            | Self::Running
            | Self::Paused
            | Self::Stopping
            | Self::Moving
            | Self::Unknown => true,
            Self::Pending | Self::Preparing | Self::Stopped | Self::Deleting | Self::Failed => {
                false
            }
        }
    }

    /// Whether `next` may follow. Staying is always allowed; nothing follows `deleting` but the end.
    pub const fn may_become(self, next: Self) -> bool {
        use InstanceState as S;
        match self {
            S::Pending => matches!(
                next,
                S::Pending | S::Preparing | S::Deleting | S::Failed | S::Unknown | S::Stopped
            ),
            S::Preparing => matches!(
                next,
                S::Preparing
                    | S::Starting
                    | S::Running
                    | S::Stopped
                    | S::Failed
                    | S::Deleting
                    | S::Unknown
            ),
            S::Starting => matches!(
                next,
                S::Starting
                    | S::Preparing
                    | S::Running
                    | S::Paused
                    | S::Stopping
                    | S::Stopped
                    | S::Failed
                    | S::Deleting
                    | S::Unknown
            ),
            S::Running => matches!(
                next,
                S::Running
                    | S::Paused
                    | S::Stopping
                    | S::Stopped
                    | S::Starting
                    | S::Preparing
                    | S::Moving
                    | S::Failed
                    | S::Deleting
                    | S::Unknown
            ),
            S::Paused => matches!(
                next,
                S::Paused
                    | S::Running
                    | S::Stopping
                    | S::Stopped
                    | S::Failed
                    | S::Deleting
                    | S::Unknown
            ),
            S::Stopping => matches!(
                next,
                S::Stopping
                    | S::Stopped
                    | S::Running
                    | S::Paused
                    | S::Failed
                    | S::Deleting
                    | S::Unknown
            ),
            S::Stopped => matches!(
                next,
                S::Stopped
                    | S::Preparing
                    | S::Starting
                    | S::Running
                    | S::Moving
                    | S::Failed
                    | S::Deleting
                    | S::Unknown
            ),
            S::Moving => matches!(
                next,
                S::Moving
                    | S::Running
                    | S::Stopped
                    | S::Preparing
                    | S::Failed
                    | S::Deleting
                    | S::Unknown
            ),
            S::Deleting => matches!(next, S::Deleting),
            S::Failed => matches!(
                next,
                S::Failed
                    | S::Preparing
                    | S::Starting
                    | S::Running
                    | S::Stopped
                    | S::Stopping
                    | S::Deleting
                    | S::Unknown
            ),
            S::Unknown => !matches!(next, S::Pending),
        }
    }

    /// The word that the wire and tables use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Preparing => "preparing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Moving => "moving",
            Self::Deleting => "deleting",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_may_stay_and_may_be_deleted() {
        for state in InstanceState::ALL {
            assert!(state.may_become(state), "{state} may stay");
            assert!(
                state.may_become(InstanceState::Deleting),
                "{state} may be deleted"
            );
        }
    }

    #[test]
    fn nothing_comes_back_from_deleting_and_nothing_returns_to_pending() {
        for state in InstanceState::ALL {
            if state != InstanceState::Deleting {
                assert!(!InstanceState::Deleting.may_become(state));
            }
            if state != InstanceState::Pending {
                assert!(!state.may_become(InstanceState::Pending), "{state}");
            }
        }
    }

    #[test]
    fn a_node_that_goes_silent_makes_any_living_state_unknown() {
        for state in InstanceState::ALL {
            assert_eq!(
                state.may_become(InstanceState::Unknown),
                state != InstanceState::Deleting
            );
        }
    }
}
