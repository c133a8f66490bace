//! The settings of one attempt to download a source.

use super::config::DownloadSettings;
use super::reach::{Reach, Trail};
use crate::images::image_space::ImageSpace;

/// The settings of an attempt.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) reach: Reach,
    /// Records whether the attempt reaches a private address.
    pub(super) trail: Trail,
    pub(super) settings: DownloadSettings,
    pub(super) disk_space: ImageSpace,
}
