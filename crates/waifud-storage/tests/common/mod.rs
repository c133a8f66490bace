//! What the tests of every pool need.

/// The user that image tools run as here: Debian's `nobody`.
pub const NOBODY: (u32, u32) = (65534, 65534);

pub use waifud_kit::testing::skip_if as skip;
