//! The node's logic: the durable copy, plans, one driver per instance, status.
//!
//! ```text
//!            waifud                                              hypervisor  pools  network  metadatad
//!   watch ──► control ──► table (durable copy) ──► driver ──────►   ensure verbs of the interfaces
//!                            ▲        wakes          │  ▲
//!                            └──── remembers ────────┘  └── planner::next(desired, memory, seen) → Step
//!   report ◄── reporter ◄── reports (outbox) ◄── status
//! ```
//!
//! - [`table`](crate::control_link::table) takes over frames of waifud's watch, on disk before anybody acts. With waifud away the
//!   agent goes on from it.
//! - A driver per instance goes through the steps of [`planner`](crate::instance::planner), each an idempotent *ensure*, until
//!   nothing is to be done. Killing the agent at any line costs nothing: the next one looks, and goes on.
//! - Keepers look after what is the whole node's: its network, its metadata service, its facts, and what is on it and
//!   in nobody's list.
//!
//! Stopping an agent stops nothing else: guests, rules, DHCP and documents go on without it.

mod agent;
mod backoff;
mod blocking;
mod condition;
mod control_link;
pub mod failpoints;
pub mod fake;
mod guest;
mod images;
mod instance;
pub mod interfaces;
mod network;
mod node;
mod plain_file;
mod settings;
mod shared;
pub mod streams;

pub use agent::{Agent, AgentError};
pub use node::membership::{Membership, MembershipError};
pub use node::shutdown;
pub use settings::{BootAlone, Settings, Timing};
pub use shared::Adapters;

/// An error and what caused it, in one line for people.
pub(crate) fn with_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}
