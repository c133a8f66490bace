//! Helpers for the tests of every pool.

/// The user and group id that image tools run as in the tests: Debian's `nobody`.
pub const OTHER_USER: (u32, u32) = (65534, 65534);

pub use waifud_kit::testing::skip_if as skip;
