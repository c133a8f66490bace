//! The node as a whole: its facts, its capacity, its membership, and the tasks that belong to no single instance.

pub(crate) mod background_tasks;
pub(crate) mod certificate;
pub(crate) mod checks;
pub(crate) mod conditions;
pub(crate) mod disk_space;
pub(crate) mod facts;
pub(crate) mod membership;
pub mod shutdown;
pub(crate) mod sweep;
