//! The control server's logic: requests, placement, events, templates, and the watch that agents follow.
//!
//! [`Control`] holds the services. Each operation is a method in its own file; each change is one job of the database's
//! writer (`waifud-store`), so that it is checked, decided, written and recorded as events in one transaction.
//! [`http`] is the interface: [`http::user_router`] for users, [`http::tls_router`] for users and nodes.
//!
//! ```text
//!  POST /v1/instances ─► http/instances.rs ─► instances/validate.rs ─► instances/create.rs ─► placement/choose.rs ─► placement/place.rs
//!                                                                             │                                            │
//!                                         one transaction: row, leases, reservation, bundle, events ◄──────────────────────┘
//!  agent's watch ◄── nodes/slice.rs ◄── wake-up after the commit
//!  agent's report ─► nodes/report.rs ─► instances/status.rs: the new status, and the events that it causes
//! ```
//!
//! | folder | content |
//! |---|---|
//! | `http/` | routes, the guard, bodies, web sockets |
//! | `instances/` | create, read, update, delete, `why` |
//! | `nodes/` | joining, the agents' watch and reports, monitoring, administration, unmanaged objects |
//! | `placement/` | the pure choice of a node, and the retry of instances that wait for one |
//! | `images/` | templates, downloads, the catalog, the image store |
//! | `network/` | networks, nics, addresses, published ports, subnets |
//! | `auth/` | principals, tokens, roles, limits of one token |
//! | `events/` | building, reading and trimming the history |
//! | `streams/` | consoles, screens, forwarded ports, guest commands |
//! | `server/` | the state of waifud itself |
//!
//! Nothing here calls a node. Time and randomness come from [`env`], so that a simulation can supply them.

#![expect(
    clippy::result_large_err,
    reason = "a problem is built once, as the answer of a request; boxing it at each step would add noise"
)]

pub mod auth;
mod background_tasks;
mod control;
pub mod env;
mod error;
mod events;
pub mod failpoints;
pub mod http;
pub mod images;
pub mod instances;
mod network;
mod nodes;
pub mod pagination;
pub mod placement;
mod problems;
mod server;
pub mod streams;

pub use auth::principal::{ConnectionProof, Peer, Principal, source_network};
pub use control::{Control, ControlConfig};
pub use error::ControlError;
pub use images::downloads::{DownloadConfig, Pace};
pub use instances::progress::ProgressFrame;
pub use network::subnet::{GATEWAY_MAC, NODE_PREFIX, free_address, free_subnet, gateway};
pub use server::redis::RedisConfig;
pub use waifud_types::event::Cause;
