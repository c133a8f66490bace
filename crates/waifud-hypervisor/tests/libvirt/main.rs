//! The libvirt adapter against real libvirtd and QEMU, in a node of the lab.
#![cfg(feature = "libvirt")]
#![expect(
    clippy::unwrap_used,
    reason = "a test fails at the first unexpected result"
)]

mod boot;
mod connection;
mod domains;
mod node;
mod probe;
