//! The node's logic: the durable copy, plans, one driver per instance, status.
//!
//! ```text
//!            waifud                                              hypervisor  pools  network  metadatad
//!   watch ──► control ──► table (durable copy) ──► driver ──────►   ensure verbs of the interfaces
//!                            ▲        wakes          │  ▲
//!                            └──── remembers ────────┘  └── plan::next(wish, memory, seen) → Step
//!   report ◄── reporter ◄── reports (outbox) ◄── status
//! ```
//!
//! - [`table`](crate::table) takes over frames of waifud's watch, on disk before anybody acts. With waifud away the
//!   agent goes on from it.
//! - A driver per instance goes through the steps of [`plan`], each an idempotent *ensure*, until
//!   nothing is to be done. Killing the agent at any line costs nothing: the next one looks, and goes on.
//! - Keepers look after what is the whole node's: its network, its metadata service, its facts, and what is on it and
//!   in nobody's list.
//!
//! Stopping an agent stops nothing else: guests, rules, DHCP and documents go on without it.

mod agent;
mod assignments;
mod background_tasks;
mod backoff;
mod blocking;
mod boot_order;
mod boot_report;
mod certificate;
mod cloud_init;
mod cloud_init_probe;
mod conditions;
mod console_tail;
mod control;
mod datasource;
mod disk_space;
mod drift;
mod driver;
mod durable;
mod facts;
pub mod fake;
pub mod faults;
mod files;
mod guest_diagnostics;
mod image_collection;
mod images;
pub mod interfaces;
mod lan;
mod membership;
mod metadata;
mod network;
mod observe;
mod pending;
mod plain_file;
pub mod plan;
#[cfg(test)]
mod plan_tests;
mod published;
mod readiness;
pub mod record;
mod reporter;
mod reports;
mod requests;
mod rescue;
mod restart_policy;
mod settings;
mod shared;
pub mod shutdown;
mod signals;
mod status;
mod steps;
pub mod streams;
mod sweep;
mod table;
#[cfg(test)]
mod table_tests;
mod trouble;
mod verdict;
#[cfg(test)]
mod verdict_tests;

pub use agent::{Agent, AgentError};
pub use membership::{Membership, MembershipError};
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
