//! The settings of one attempt to download a source.

use std::time::Duration;

use waifud_types::ByteSize;

use super::config::Pace;
use super::reach::{Reach, Trail};
use crate::images::image_space::ImageSpace;

/// The settings of an attempt.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) reach: Reach,
    /// Records whether the attempt reaches a private address.
    pub(super) trail: Trail,
    pub(super) proxies: bool,
    pub(super) max: ByteSize,
    pub(super) disk_space: ImageSpace,
    /// A server that sends nothing for this long is treated as disconnected.
    pub(super) silence: Duration,
    pub(super) pace: Pace,
}
