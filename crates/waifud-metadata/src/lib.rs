//! The metadata service: identifies guests, serves their documents, and limits their requests.
//!
//! ```text
//!  tunnel ── GuestListener ──► serve_guests ──► answer_guest ──► Registry: exact inner address ─► Documents
//!                              (limits)         (identity)           ▲
//!  agent ─── unix socket ────► ControlSocket ─► MetadataService ─────┤
//!                              (peer's uid)     (control verbs)      ├── Store: bundles and assignments on disk
//!  Redis ◄── read bundles ──────────────────────────────────────────┘
//! ```
//!
//! A guest is identified only by the source address of its connection inside the tunnel, which the tunnel guarantees (see
//! `waifud-wireguard`). The address is looked up for every request, so a guest whose assignment was removed can read
//! nothing more. No header affects the identity.
//!
//! Everything is stored durably before it is served, so after a restart the service answers guests before the agent or
//! waifud reconnects. Requests of the agent are verified: a bundle must have its digest, must open with its key, and must
//! belong to the instance that it is assigned to.

mod cloud_init_event;
mod control;
pub mod failpoints;
mod guest;
mod limits;
mod observations;
mod phone_home;
mod redis_bundles;
mod registry;
mod serve;
mod service;
mod store;
mod tunnel;

pub use control::{ControlSocket, ControlSocketError};
pub use limits::GuestLimits;
pub use redis_bundles::RedisBundles;
pub use serve::serve_guests;
pub use service::{ControlError, MetadataService, Parts, system_clock};
pub use store::{BundleStore, DiskStore, FakeStore, StateStore, StoreError, conformance};
pub use tunnel::{FakeTunnel, TunnelEnd, WireguardEnd};
