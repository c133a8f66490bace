//! The state of waifud itself: its database, its certificates, the space in its state directory, and the bundles in Redis.

mod disk_space_events;
pub(crate) mod disk_space_monitor;
pub(crate) mod problems;
pub(crate) mod redis;
mod status;
