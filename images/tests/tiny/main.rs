//! The tiny guest, built and run under emulation. One machine at a time. Needs root, and does not use the host's
//! network.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may panic, like tests"
)]

mod boot;
mod machine;
mod metadata;
