//! The tiny guest, built and run under emulation. One machine at a time. Needs root, and does not use the host's
//! network.
#![expect(clippy::unwrap_used, clippy::panic, reason = "test helpers may panic")]

mod boot;
mod machine;
mod metadata;
