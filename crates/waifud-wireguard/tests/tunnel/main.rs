//! The tunnel through its public interface: in memory, with real packets between network namespaces, and over the lifetime
//! of its keys.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "test helpers may panic"
)]

mod guest_listener;
#[path = "../kit/mod.rs"]
mod kit;
#[path = "../../benches/load/mod.rs"]
mod load;
mod packets;
mod soak;
