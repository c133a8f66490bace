//! One instance on this node: the driver that brings it to its desired state, the planner, and the steps.

mod boot_order;
pub(crate) mod conditions;
pub(crate) mod datasource;
pub(crate) mod disks;
pub(crate) mod domain_spec;
pub(crate) mod drift;
pub(crate) mod driver;
pub(crate) mod failure;
pub(crate) mod files;
mod hypervisor_kind;
pub(crate) mod nics;
pub(crate) mod observe;
pub(crate) mod parts;
pub(crate) mod pending;
pub(crate) mod planner;
#[cfg(test)]
mod planner_tests;
pub(crate) mod rescue;
pub(crate) mod restart_policy;
pub(crate) mod signals;
mod start_permission;
pub(crate) mod status;
#[cfg(test)]
mod status_tests;
pub(crate) mod steps;
