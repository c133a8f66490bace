//! The inside of a guest: its documents, cloud-init's state, and diagnostics for `why`.

pub(crate) mod assignments;
pub(crate) mod boot_report;
mod bundle_cache;
pub(crate) mod cloud_init;
pub(crate) mod cloud_init_probe;
pub(crate) mod console_end;
pub(crate) mod console_tail;
pub(crate) mod diagnostics;
pub(crate) mod diagnostics_requests;
pub(crate) mod evidence;
pub(crate) mod metadata;
pub(crate) mod metadata_refresh;
pub(crate) mod readiness;
pub(crate) mod report_port;
pub(crate) mod requests;
pub(crate) mod verdict;
#[cfg(test)]
mod verdict_tests;
