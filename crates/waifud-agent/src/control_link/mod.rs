//! The link to waifud: the watch, the node's durable copy of its slice, and reports.

mod cluster;
mod confirmation;
pub(crate) mod durable;
mod known_kinds;
pub(crate) mod names;
pub(crate) mod order;
pub(crate) mod outcome;
pub(crate) mod peers;
#[cfg(test)]
mod peers_tests;
mod planted_bug;
mod receiving;
pub(crate) mod record;
pub(crate) mod reporter;
pub(crate) mod reports;
pub(crate) mod table;
#[cfg(test)]
pub(crate) mod table_samples;
#[cfg(test)]
mod table_tests;
pub(crate) mod watch;
