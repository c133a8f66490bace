//! The history: how events are built, listed, followed and trimmed.

mod conditions;
pub(crate) mod event_builder;
mod follow;
mod history;
pub(crate) mod problems;
mod trim;

pub(crate) use conditions::condition_changes;
pub(crate) use follow::{EventItem, EventWatch};
pub(crate) use trim::HistoryClock;
