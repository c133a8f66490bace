//! The control server's logic: requests, placement, events, templates, the agents' watch.
//!
//! [`Control`] is the services: each verb is a method in a file of its own, and each change is one job of the
//! database's writer (`waifud-store`), so that it is checked, decided, written and told of at once or not at all.
//! [`http`] puts HTTP before it: [`http::user_router`] for people, [`http::tls_router`] for them and for nodes.
//!
//! ```text
//!  POST /v1/instances ─► http/instances.rs ─► validate.rs ─► instances/create.rs ─► placement.rs ─► instances/place.rs
//!                                                                  │                                      │
//!                                         one transaction: row, leases, reservation, bundle, events ◄─────┘
//!  agent's watch ◄── agent/slice.rs ◄── wake-up after the commit
//!  agent's report ─► agent/report.rs ─► status.rs: what changed, and which events tell of it
//! ```
//!
//! Nothing here calls a node. Time and chance come from [`env`], so that a simulation can give them.

#![expect(
    clippy::result_large_err,
    reason = "a problem is made once, on its way out of a request; a box at each step would only be noise"
)]

pub mod agent;
mod boot;
pub mod catalog;
mod certificates;
mod control;
mod disk_space;
mod documents;
mod downloads;
pub mod env;
mod error;
mod event_builder;
mod failed_logins;
pub mod faults;
mod holdings;
pub mod http;
mod image_file;
mod image_store;
pub mod instances;
mod joining;
mod live;
mod monitor;
mod names;
mod networks;
mod node_admin;
mod nodes;
pub mod page;
pub mod placement;
mod principal;
mod problems;
mod status;
pub mod streams;
mod subnet;
mod templates;
mod tokens;
mod unmanaged;
mod validate;
mod view;

pub use control::{Control, ControlConfig, ProgressFrame};
pub use downloads::{DownloadConfig, Pace};
pub use error::ControlError;
pub use principal::{Cause, ConnectionProof, Peer, Principal, source_network};
pub use subnet::{GATEWAY_MAC, NODE_PREFIX, free_address, free_subnet, gateway};
