//! The tiny guest, built and run under emulation. One machine at a time; needs root, and never the host's network.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's helpers stop at the first surprise, as tests do"
)]

mod boot;
mod machine;
mod metadata;
