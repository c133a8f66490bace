//! The link to waifud: its watch comes in, the node's durable copy of it is kept, and reports go out.

pub(crate) mod durable;
pub(crate) mod record;
pub(crate) mod reporter;
pub(crate) mod reports;
pub(crate) mod table;
#[cfg(test)]
mod table_tests;
pub(crate) mod watch;
