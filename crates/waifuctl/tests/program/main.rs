//! waifuctl as a program, against control servers in the process of the test and against a fake.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's helpers may stop at the first surprise"
)]

mod common;
mod fake;
mod remote;
mod spec;
