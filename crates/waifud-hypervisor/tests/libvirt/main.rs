//! The libvirt adapter against real libvirtd and QEMU, in a node of the lab.
#![cfg(feature = "libvirt")]
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod boot;
mod connection;
mod domains;
mod node;
mod probe;
