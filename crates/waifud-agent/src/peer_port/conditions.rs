//! The peer port as a condition of the node.

use waifud_kit::sync::lock;
use waifud_types::Timestamp;
use waifud_types::status::Condition;

use super::{PortState, PortStatus};
use crate::condition::condition;

impl PortStatus {
    /// The condition of a port that cannot be opened.
    pub fn condition(&self, now: Timestamp) -> Option<Condition> {
        match &*lock(&self.0) {
            PortState::Failed { reason, message } => {
                Some(condition("peer-port", false, reason, message.clone(), now))
            }
            PortState::Closed | PortState::Open => None,
        }
    }
}
