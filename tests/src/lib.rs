//! End-to-end suites: the real programs with real libvirt, QEMU and networks.
//!
//! [`World`] is one node in namespaces with libvirtd and our three daemons. The suites in `tests/` control it with
//! `waifuctl`, as a user would, and compare its output with the state of libvirt, the disk and the network.

pub mod button;
mod guest;
pub mod guest_agent;
pub mod home;
pub mod kills;
pub mod machine;
pub mod reach;
pub mod running;
mod waifuctl;
pub mod world;

pub use guest::Guest;
pub use machine::Machine;
pub use waifuctl::{Outcome, Waifuctl};
pub use world::World;
