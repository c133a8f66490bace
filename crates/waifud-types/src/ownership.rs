//! Which node may run an instance: the roles of the nodes that have a part in it, and the rules by which they change.
//!
//! waifud keeps one [`Part`] for each node. Its half of the rules is [`Ownership`]: an instance changes owner only after
//! the old owner has recorded the release. A node keeps the epoch of its copy, of a release and of a deletion. Its half is
//! [`NodeCopy`]: an order of an older epoch is ignored, and only a newer epoch ends a release.
//!
//! ```text
//!   owner ── begin_release ──► releasing ── record_released ──► released
//!     ▲                            │                               │
//!     └──────── withdraw_release (the next epoch) ─────────────────┘
//!   receiving ── take_over (the next epoch; every other part is released and off, or receiving) ──► owner
//! ```
//!
//! A release without `stop` is recorded while the guest still runs. So a released node also reports when its guest is off,
//! and until then no other node takes over.

use serde::{Deserialize, Serialize};
use waifud_kit::planted_bugs::Bug;

use crate::{Epoch, NodeId};

/// The role of a node in an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnershipRole {
    /// The node runs the instance.
    Owner,
    /// The node will run the instance after the owner has released it.
    Receiving,
    /// The node was ordered to release the instance and has not confirmed it.
    Releasing,
    /// The node has recorded the release and does not start the instance again. It keeps the disks.
    Released,
}

/// A node's part in an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// The node.
    pub node: NodeId,
    /// The epoch in which the node became the owner, or that the instance had when the node began to receive it. During and
    /// after a release: the epoch that is released.
    pub epoch: Epoch,
    /// The role.
    pub role: OwnershipRole,
    /// During a release: whether the node shuts the guest down. If not, a running guest keeps running and is not started
    /// again after it has ended.
    pub stop: bool,
    /// After a release: the node has reported that the guest is off. It stays off, because the node does not start it again.
    pub off: bool,
}

impl Part {
    /// Whether the guest may run on the node.
    fn may_run(&self) -> bool {
        match self.role {
            OwnershipRole::Owner | OwnershipRole::Releasing => true,
            OwnershipRole::Released => !self.off,
            OwnershipRole::Receiving => false,
        }
    }
}

/// Why a role cannot change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HandoverError {
    /// Only the owner releases an instance.
    #[error("the node is not the owner of the instance")]
    NotOwner,
    /// Only a release can be withdrawn.
    #[error("the node is not releasing the instance")]
    NotReleasing,
    /// Only a receiving node takes over.
    #[error("the node is not receiving the instance")]
    NotReceiving,
    /// A node with another role cannot begin to receive.
    #[error("the node already has a role for the instance")]
    HasPart,
    /// Another node may still run the instance.
    #[error("another node has not released the instance yet")]
    NotReleased,
    /// The guest may run on a node that has released it.
    #[error("the guest still runs on the node that released it")]
    StillRuns,
}

/// The parts of all nodes in one instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ownership {
    /// The current epoch of the instance.
    pub epoch: Epoch,
    /// The lowest epoch that may be assigned. After a restore of waifud's database it is above every epoch that was
    /// assigned before, including those that the backup does not contain.
    pub floor: Epoch,
    /// One part for each node.
    pub parts: Vec<Part>,
}

impl Ownership {
    /// The part of a node.
    pub fn part(&self, node: NodeId) -> Option<Part> {
        self.parts.iter().find(|part| part.node == node).copied()
    }

    /// The owner.
    pub fn owner(&self) -> Option<NodeId> {
        let owner = self.parts.iter().find(|p| p.role == OwnershipRole::Owner);
        owner.map(|part| part.node)
    }

    /// The epoch of the next owner.
    pub fn next_epoch(&self) -> Epoch {
        self.epoch.next().max(self.floor)
    }

    /// Orders the owner to release the instance.
    pub fn begin_release(&mut self, node: NodeId, stop: bool) -> Result<(), HandoverError> {
        let part = self.find_as(node, OwnershipRole::Owner);
        let part = part.ok_or(HandoverError::NotOwner)?;
        part.role = OwnershipRole::Releasing;
        part.stop = stop;
        part.off = false;
        Ok(())
    }

    /// Makes the node the owner again. The epoch grows, so that the release, which the node may have recorded, ends. Refused
    /// while the guest may run on another node.
    pub fn withdraw_release(&mut self, node: NodeId) -> Result<(), HandoverError> {
        if self.owner().is_some() {
            return Err(HandoverError::NotReleasing);
        }
        let mut others = self.parts.iter().filter(|part| part.node != node);
        if others.any(Part::may_run) {
            return Err(HandoverError::NotReleased);
        }
        let epoch = self.next_epoch();
        let given_up = |part: &&mut Part| {
            matches!(
                part.role,
                OwnershipRole::Releasing | OwnershipRole::Released
            )
        };
        let part = self.find(node).filter(given_up);
        let part = part.ok_or(HandoverError::NotReleasing)?;
        *part = Part {
            node,
            epoch,
            role: OwnershipRole::Owner,
            stop: false,
            off: false,
        };
        self.epoch = epoch;
        Ok(())
    }

    /// The node reports that it has recorded the release of its copy of this epoch, and whether the guest is off. Returns
    /// whether that changed its part: a repeated report, and one of another epoch, changes nothing.
    pub fn record_released(&mut self, node: NodeId, epoch: Epoch, off: bool) -> bool {
        let Some(part) = self.find(node) else {
            return false;
        };
        let changes = (part.epoch == epoch || Bug::ForgottenEpochCheck.is_planted())
            && match part.role {
                OwnershipRole::Releasing => true,
                OwnershipRole::Released => off && !part.off,
                OwnershipRole::Owner | OwnershipRole::Receiving => false,
            };
        if changes {
            part.role = OwnershipRole::Released;
            part.off |= off;
        }
        changes
    }

    /// Adds a node that will take over. A node that has released the instance can receive it again once its guest is off;
    /// before that, only the release can be withdrawn.
    pub fn begin_receiving(&mut self, node: NodeId) -> Result<(), HandoverError> {
        let epoch = self.epoch;
        match self.find(node) {
            Some(part) if part.role == OwnershipRole::Released => {
                if part.may_run() {
                    return Err(HandoverError::StillRuns);
                }
                part.role = OwnershipRole::Receiving;
            }
            Some(_) => return Err(HandoverError::HasPart),
            None => self.parts.push(Part {
                node,
                epoch,
                role: OwnershipRole::Receiving,
                stop: false,
                off: false,
            }),
        }
        Ok(())
    }

    /// Makes a receiving node the owner, in the next epoch. Refused until every other node has recorded its release and
    /// reported that the guest is off.
    pub fn take_over(&mut self, node: NodeId) -> Result<(), HandoverError> {
        let mut others = self.parts.iter().filter(|part| part.node != node);
        if let Some(part) = others.find(|part| part.may_run()) {
            return Err(match part.role {
                OwnershipRole::Released => HandoverError::StillRuns,
                _ => HandoverError::NotReleased,
            });
        }
        let epoch = self.next_epoch();
        let part = self.find_as(node, OwnershipRole::Receiving);
        let part = part.ok_or(HandoverError::NotReceiving)?;
        part.role = OwnershipRole::Owner;
        part.epoch = epoch;
        part.off = false;
        self.epoch = epoch;
        Ok(())
    }

    fn find_as(&mut self, node: NodeId, role: OwnershipRole) -> Option<&mut Part> {
        self.find(node).filter(|part| part.role == role)
    }

    fn find(&mut self, node: NodeId) -> Option<&mut Part> {
        self.parts.iter_mut().find(|part| part.node == node)
    }
}

/// What a node has durably recorded about its copy of an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeCopy {
    /// The epoch of the copy; `None` without a copy.
    pub epoch: Option<Epoch>,
    /// The epoch of the last release.
    pub released: Option<Epoch>,
    /// The epoch of the last deletion.
    pub deleted: Option<Epoch>,
}

/// Why a node ignores an order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Outdated {
    /// The copy has a newer epoch.
    #[error("the order is for an older epoch than the copy on this node")]
    OlderEpoch,
    /// The node has released the instance in this epoch or a later one.
    #[error("this node has released the instance in this epoch")]
    Released,
    /// The copy of this epoch is being destroyed.
    #[error("the copy of this epoch is being destroyed")]
    Deleted,
}

impl NodeCopy {
    /// Whether the spec of an instance of this epoch applies.
    ///
    /// `restored` means that waifud's database was restored from a backup and the node is not confirmed. The database may
    /// contain an instance that was deleted after the backup, and keeping that instance is safe. Starting one that was
    /// released is never safe, because another node may run it.
    pub fn check_put(&self, epoch: Epoch, restored: bool) -> Result<(), Outdated> {
        if self.epoch > Some(epoch) {
            Err(Outdated::OlderEpoch)
        } else if self.released >= Some(epoch) {
            Err(Outdated::Released)
        } else if self.deleted >= Some(epoch) && !restored {
            Err(Outdated::Deleted)
        } else {
            Ok(())
        }
    }

    /// Whether a release of this epoch applies. `restored` has the meaning of [`NodeCopy::check_put`]: the restored database
    /// does not contain a later deletion, and keeping the disks is safe.
    pub fn check_release(&self, epoch: Epoch, restored: bool) -> Result<(), Outdated> {
        if self.epoch > Some(epoch) || self.released > Some(epoch) {
            Err(Outdated::OlderEpoch)
        } else if self.deleted >= Some(epoch) && !restored {
            Err(Outdated::Deleted)
        } else {
            Ok(())
        }
    }

    /// Whether a deletion of this epoch applies.
    pub fn check_deletion(&self, epoch: Epoch) -> Result<(), Outdated> {
        if self.epoch > Some(epoch) {
            Err(Outdated::OlderEpoch)
        } else {
            Ok(())
        }
    }

    /// Whether the node may start its copy.
    pub fn may_start(&self) -> bool {
        self.epoch.is_some() && self.released < self.epoch && self.deleted < self.epoch
    }
}

#[cfg(test)]
mod tests;
