//! Domains as libvirt's XML: rendering ours, observing existing ones, and merging the two. No I/O.
//!
//! libvirt's format is described at <https://libvirt.org/formatdomain.html>. `managed` decides what in a domain is ours
//! and what libvirt or a user added.

mod device_settings;
mod drift;
mod escaped;
mod live_nics;
mod managed;
mod merge;
mod observe;
mod render;
mod smbios;
mod tree;

pub(crate) use drift::{added, changed};
pub use live_nics::{LiveNicDevice, has_nic, live_nics};
pub use merge::merge;
pub use observe::{Described, describe, disk_target, emulator, socket};
pub use render::{RenderOptions, nic_device, render};
pub use tree::XmlError;
