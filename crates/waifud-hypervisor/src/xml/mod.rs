//! Domains as libvirt's XML: writing ours, reading what is there, and bringing the two together. Pure.
//!
//! libvirt's format is described at <https://libvirt.org/formatdomain.html>. Every device of ours carries an alias
//! that begins with `ua-waifud-`; so a later look at a domain tells ours from what libvirt or somebody added.

mod drift;
mod merge;
mod observe;
mod render;
mod smbios;
mod tree;

pub(crate) use drift::{added, changed};
pub use merge::merge;
pub use observe::{Described, describe, disk_target, emulator, socket};
pub use render::{RenderOptions, render};
pub use tree::XmlError;

/// The namespace of our element in a domain's metadata. The number changes when its meaning does.
pub const NAMESPACE: &str = "urn:waifud:domain:1";

/// What the aliases of our devices begin with; libvirt keeps aliases that begin with `ua-`.
const ALIAS: &str = "ua-waifud-";
