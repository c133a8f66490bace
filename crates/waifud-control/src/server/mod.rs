//! The state of waifud itself: its database, its certificates and the space in its state directory.

mod disk_space_events;
pub(crate) mod disk_space_monitor;
pub(crate) mod problems;
mod status;
