//! End-to-end suites: the real programs on real parts.
//!
//! [`World`] is one node in namespaces with libvirtd and our three daemons; suites in `tests/` drive it through
//! `waifuctl`, as a person would, and look at libvirt, the disk and the wires to see whether it told the truth.

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
