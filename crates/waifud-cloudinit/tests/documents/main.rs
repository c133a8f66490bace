//! All documents that guests read, through the public functions only.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod answers;
mod bundles;
mod common;
mod datasources;
mod pyyaml;
mod ssh_keys;
mod user_data;
