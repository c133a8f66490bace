//! Placement: which node an instance runs on, and when instances that wait for a node are tried again.

mod choose;
#[cfg(test)]
mod choose_tests;
pub(crate) mod place;
mod retry;

pub(crate) use retry::RetryQueue;

pub use choose::{Choice, PlacementRequest, choose};
