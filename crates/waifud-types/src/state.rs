//! The states of an instance and their transitions.
//!
//! ```text
//!            ┌────────────────────────── unknown ◄── (its node is unreachable; any state) ──┐
//!            ▼                                                                               │
//! pending ─► preparing ─► starting ─► running ◄─► paused                                     │
//!    │           │            │          │ │         │                                       │
//!    │           ▼            ▼          │ └► stopping ─► stopped ─► starting                │
//!    │         failed ◄───────┴──────────┘                  │                                │
//!    └───────────┴──────────────► deleting ◄────────────────┘ (from every state)
//! ```
//!
//! `moving` is entered from running or stopped and left for either. The node retries a failed instance, so `failed`
//! can be followed by preparing or starting.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The state of an instance.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum InstanceState {
    /// Waiting for a node.
    Pending,
    /// The node prepares the image, the disk, the network and the metadata.
    Preparing,
    /// The hypervisor is starting the guest.
    Starting,
    /// Running.
    Running,
    /// Paused by the hypervisor, for example because a disk is full, or by a user.
    Paused,
    /// Shutting down.
    Stopping,
    /// Off.
    Stopped,
    /// Moving between two nodes.
    Moving,
    /// Being destroyed; its name is free afterwards.
    Deleting,
    /// A step failed, and retries are not expected to succeed soon; see the reason.
    Failed,
    /// The node is unreachable; `last_state` is the last reported state. Also a state that this version does not know.
    #[serde(other)]
    Unknown,
}

names! {
    /// The name in the API and in tables.
    InstanceState {
        Pending => "pending",
        Preparing => "preparing",
        Starting => "starting",
        Running => "running",
        Paused => "paused",
        Stopping => "stopping",
        Stopped => "stopped",
        Moving => "moving",
        Deleting => "deleting",
        Failed => "failed",
        Unknown => "unknown",
    }
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

    /// Whether the guest may be running. This includes shutting down, when it still writes to the console.
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

    /// Whether `next` can follow. A state can always stay; `deleting` is final.
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_can_stay_and_can_be_deleted() {
        for state in InstanceState::ALL {
            assert!(state.may_become(state), "{state} may stay");
            assert!(
                state.may_become(InstanceState::Deleting),
                "{state} may be deleted"
            );
        }
    }

    #[test]
    fn deleting_is_final_and_pending_is_never_entered_again() {
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
    fn an_unreachable_node_makes_any_state_but_deleting_unknown() {
        for state in InstanceState::ALL {
            assert_eq!(
                state.may_become(InstanceState::Unknown),
                state != InstanceState::Deleting
            );
        }
    }
}
