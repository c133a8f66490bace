//! The state of waifud itself: its database, its certificates and the space in its state directory.

pub(crate) mod disk_space;
pub(crate) mod problems;
