//! Moves of an instance to another node: the states of a move, and the rule by which it goes on.
//!
//! ```text
//!   preparing ─► stopping ─► copying ─► starting ─► removing ─► over
//!       │            │          │
//!       └────────────┴──────────┴──► canceling ─► over
//! ```
//!
//! The guest runs on the old node while the new one prepares the images. It is off from `stopping` until it has started on
//! the new node. The new node becomes the owner at the end of `copying`, so a move can be canceled until then. The old node
//! keeps its disks until the instance has been seen on the new node.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_kit::planted_bugs::Bug;

/// The state of a move.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MoveState {
    /// The new node imports the images; the guest still runs on the old one.
    Preparing,
    /// The old node shuts the guest down and releases the instance.
    Stopping,
    /// The new node copies the disks.
    Copying,
    /// The new node owns the instance and starts it.
    Starting,
    /// The old node deletes its copy.
    Removing,
    /// The move was canceled: the instance stays on the old node, and the new node deletes what it has received.
    Canceling,
    /// A state that this version does not know.
    #[serde(other)]
    Other,
}

names! {
    /// The name in the API and in tables.
    MoveState {
        Preparing => "preparing",
        Stopping => "stopping",
        Copying => "copying",
        Starting => "starting",
        Removing => "removing",
        Canceling => "canceling",
        Other => "other",
    }
}

impl MoveState {
    /// Whether the move can still be canceled: the old node is the owner, or becomes the owner again.
    pub const fn can_be_canceled(self) -> bool {
        matches!(self, Self::Preparing | Self::Stopping | Self::Copying)
    }

    /// Whether no node owns the instance, so that its guest runs nowhere or is being shut down.
    pub const fn is_between_owners(self) -> bool {
        matches!(self, Self::Stopping | Self::Copying)
    }
}

/// How far a node is with an instance that it receives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReceiveState {
    /// It imports the images.
    #[default]
    Preparing,
    /// It has the images, and waits for the release by the old node.
    Prepared,
    /// It copies the disks.
    Copying,
    /// It has all disks, verified and durable.
    Received,
    /// A state that this version does not know.
    #[serde(other)]
    Other,
}

impl ReceiveState {
    /// Whether it has the images.
    pub const fn is_prepared(self) -> bool {
        matches!(self, Self::Prepared | Self::Copying | Self::Received)
    }
}

/// The path by which the disks of a moving instance are copied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CopyPath {
    /// From node to node, through the peer port of the old one.
    Direct,
    /// Through waifud.
    Waifud,
    /// A path that this version does not know.
    #[serde(other)]
    Other,
}

names! {
    /// The name in the API.
    CopyPath {
        Direct => "direct",
        Waifud => "waifud",
        Other => "other",
    }
}

/// What decides about the next step of a move.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, named where they are used"
)]
pub struct MoveFacts {
    /// What the new node has reported.
    pub received: ReceiveState,
    /// The old node has recorded the release, and the guest is off.
    pub is_released: bool,
    /// The new node has reported the instance as its own, running or off as desired.
    pub is_settled: bool,
    /// The old node has no part in the instance any more.
    pub old_is_gone: bool,
    /// The new node has no part in the instance (any more).
    pub new_is_gone: bool,
}

/// The next step of a move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MoveStep {
    /// Order the old node to shut the guest down and to release the instance.
    Release,
    /// Let the new node copy the disks.
    Copy,
    /// Make the new node the owner.
    TakeOver,
    /// Order the old node to delete its copy.
    Remove,
    /// The move is over.
    End,
}

/// The next step; `None` while the move waits for a node.
pub fn next(state: MoveState, facts: MoveFacts) -> Option<MoveStep> {
    match state {
        MoveState::Preparing => facts.received.is_prepared().then_some(MoveStep::Release),
        MoveState::Stopping => facts.is_released.then_some(MoveStep::Copy),
        MoveState::Copying => (facts.is_released && facts.received == ReceiveState::Received)
            .then_some(MoveStep::TakeOver),
        MoveState::Starting => {
            let remove = facts.is_settled || Bug::OldDisksDeletedEarly.is_planted();
            remove.then_some(MoveStep::Remove)
        }
        MoveState::Removing => facts.old_is_gone.then_some(MoveStep::End),
        MoveState::Canceling => facts.new_is_gone.then_some(MoveStep::End),
        // Written by a newer version, which alone knows how it goes on.
        MoveState::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_facts() -> Vec<MoveFacts> {
        let mut all = Vec::new();
        for received in [
            ReceiveState::Preparing,
            ReceiveState::Prepared,
            ReceiveState::Copying,
            ReceiveState::Received,
            ReceiveState::Other,
        ] {
            for bits in 0..16_u8 {
                all.push(MoveFacts {
                    received,
                    is_released: bits & 1 > 0,
                    is_settled: bits & 2 > 0,
                    old_is_gone: bits & 4 > 0,
                    new_is_gone: bits & 8 > 0,
                });
            }
        }
        all
    }

    #[test]
    fn the_new_node_takes_over_only_after_the_release_and_with_all_disks() {
        for state in [
            MoveState::Preparing,
            MoveState::Stopping,
            MoveState::Copying,
            MoveState::Starting,
            MoveState::Removing,
            MoveState::Canceling,
        ] {
            for facts in all_facts() {
                if next(state, facts) == Some(MoveStep::TakeOver) {
                    assert_eq!(state, MoveState::Copying);
                    assert!(facts.is_released, "{facts:?}");
                    assert_eq!(facts.received, ReceiveState::Received);
                }
            }
        }
    }

    #[test]
    fn the_old_copy_is_removed_only_after_the_instance_was_seen_on_the_new_node() {
        for facts in all_facts() {
            for state in [
                MoveState::Preparing,
                MoveState::Stopping,
                MoveState::Copying,
            ] {
                assert_ne!(next(state, facts), Some(MoveStep::Remove));
            }
            let removed = next(MoveState::Starting, facts) == Some(MoveStep::Remove);
            assert_eq!(removed, facts.is_settled);
        }
    }

    #[test]
    fn a_move_without_interruptions_passes_through_all_states() {
        let mut facts = MoveFacts::default();
        assert_eq!(next(MoveState::Preparing, facts), None);
        facts.received = ReceiveState::Prepared;
        assert_eq!(next(MoveState::Preparing, facts), Some(MoveStep::Release));
        assert_eq!(next(MoveState::Stopping, facts), None);
        facts.is_released = true;
        assert_eq!(next(MoveState::Stopping, facts), Some(MoveStep::Copy));
        facts.received = ReceiveState::Copying;
        assert_eq!(next(MoveState::Copying, facts), None);
        facts.received = ReceiveState::Received;
        assert_eq!(next(MoveState::Copying, facts), Some(MoveStep::TakeOver));
        assert_eq!(next(MoveState::Starting, facts), None);
        facts.is_settled = true;
        assert_eq!(next(MoveState::Starting, facts), Some(MoveStep::Remove));
        assert_eq!(next(MoveState::Removing, facts), None);
        facts.old_is_gone = true;
        assert_eq!(next(MoveState::Removing, facts), Some(MoveStep::End));
    }

    #[test]
    fn a_canceled_move_ends_when_the_new_node_has_nothing_left() {
        for facts in all_facts() {
            let ends = next(MoveState::Canceling, facts) == Some(MoveStep::End);
            assert_eq!(ends, facts.new_is_gone);
        }
    }

    #[test]
    fn states_of_newer_versions_are_readable_and_wait() {
        let state: MoveState = serde_json::from_str("\"warming\"").unwrap();
        assert_eq!(state, MoveState::Other);
        assert!(
            all_facts()
                .into_iter()
                .all(|facts| next(state, facts).is_none())
        );
        let received: ReceiveState = serde_json::from_str("\"warming\"").unwrap();
        assert_eq!(received, ReceiveState::Other);
    }
}
