//! The node's logic: the durable copy, the planner, one driver per instance, and status reports.
//!
//! ```text
//!            waifud                                            hypervisor  pools  network  metadatad
//!   watch ──► watch task ──► table (durable copy) ──► driver ──────►  ensure verbs of the interfaces
//!                              ▲        wakes           │  ▲
//!                              └────── records ─────────┘  └── planner::next(desired, memory, observed) → Step
//!   report ◄── reporter ◄── reports (outbox) ◄── status
//! ```
//!
//! - `instance` has a driver per instance, which runs the steps of the planner. Each step is an idempotent *ensure*, so
//!   an agent that is killed at any point is replaced by one that observes and continues.
//! - `control_link` applies the frames of waifud's watch to the durable copy before anything acts on them, so the agent
//!   works without waifud, and sends reports.
//! - `guest` serves guests their documents and finds out what cloud-init does in them.
//! - `node` has the node's facts, its membership, and tasks that belong to no single instance.
//! - `peer_port` and `transfer` send and receive the disks of instances that move.
//! - `network`, `images` and `streams` apply the guests' network, import images, and serve consoles and connections.
//!
//! Stopping an agent stops nothing else: guests, firewall rules, DHCP and documents are not affected.

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
mod peer_port;
mod plain_file;
mod settings;
mod shared;
pub mod streams;
mod transfer;

pub use agent::{Agent, AgentError};
pub use blocking::access_files_inline;
pub use node::membership::{Membership, MembershipError};
pub use node::shutdown;
pub use settings::{BootAlone, Settings, Timing};
pub use shared::Adapters;
