//! The history: how events are built, listed, followed and trimmed.

pub(crate) mod event_builder;
pub(crate) mod problems;
