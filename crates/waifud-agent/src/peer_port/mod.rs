//! The peer port: disks of moving instances and images go from node to node, without waifud between them.
//!
//! The node that receives an instance asks waifud for a ticket for each transfer of a disk. waifud answers with the ticket and
//! the address of the node that has the disk, and tells that node the digest of the ticket, what it is for, and which node may
//! use it. The receiver connects, both prove who they are by their certificates, and the ticket is redeemed ([`tickets`]).
//! If any of this fails, the receiver gets the disk through waifud ([`direct`]).
//!
//! A node that needs an image gets it in the same way, from any node that has it, or else from waifud ([`images`]).
//!
//! Callers that have proven nothing get little: [`admission`] limits how many there are, and [`server`] for how long.

mod admission;
pub(crate) mod avoided;
mod conditions;
mod connect;
pub(crate) mod direct;
pub(crate) mod images;
pub(crate) mod server;
pub(crate) mod tickets;

use std::sync::Mutex;

use waifud_kit::sync::lock;

/// Whether the node listens.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
enum PortState {
    /// Not yet, or it has no peer port.
    #[default]
    Closed,
    /// It listens.
    Open,
    /// The last attempt has failed.
    Failed {
        reason: &'static str,
        message: String,
    },
}

/// What the rest of the agent knows of the port.
#[derive(Debug, Default)]
pub(crate) struct PortStatus(Mutex<PortState>);

impl PortStatus {
    /// Returns whether the state has changed.
    fn set(&self, state: PortState) -> bool {
        let mut now = lock(&self.0);
        let changed = *now != state;
        *now = state;
        changed
    }

    /// Whether other nodes can connect.
    pub fn is_open(&self) -> bool {
        *lock(&self.0) == PortState::Open
    }
}
