//! Placement: which node an instance runs on, and when instances that wait for a node are tried again.

mod capacity;
#[cfg(test)]
mod capacity_tests;
mod choose;
#[cfg(test)]
mod choose_tests;
pub(crate) mod place;
mod retry;
mod survey;

pub(crate) use retry::RetryQueue;

pub use capacity::{Fit, Outage, Placed, Survival, Unplaced, fit};
pub use choose::{Choice, PlacementRequest, choose};
