//! The metadata service: who asks, which document, and how much of it at once.
//!
//! ```text
//!  tunnel ── GuestListener ──► serve_guests ──► answer_guest ──► Registry: exact inner address ─► Documents
//!                              (limits)         (identity)           ▲
//!  agent ─── unix socket ────► ControlSocket ─► MetadataService ─────┤
//!                              (peer's uid)     (control verbs)      └── Store: bundles and assignments on disk
//! ```
//!
//! A guest is known by the inner source address of its connection and by nothing else. That address can be believed
//! because of the tunnel (see `waifud-wireguard`), and it is looked up for every request, so that a guest whose
//! assignment went away reads nothing more. No header changes who somebody is.
//!
//! Everything that is served was first made durable here: after a restart the service answers before the agent, let
//! alone waifud, has come back. What the agent says is checked, not believed: a bundle must have its digest, must open
//! with its key, and must be for the instance that it is assigned to.

mod cloud_init_event;
mod control;
pub mod failpoints;
mod guest;
mod limits;
mod observations;
mod phone_home;
mod registry;
mod serve;
mod service;
mod store;
mod tunnel;

pub use control::{ControlSocket, ControlSocketError};
pub use limits::GuestLimits;
pub use serve::serve_guests;
pub use service::{ControlError, MetadataService, Parts, system_clock};
pub use store::{BundleStore, DiskStore, FakeStore, StateStore, StoreError, conformance};
pub use tunnel::{FakeTunnel, TunnelEnd, WireguardEnd};
