//! The service as guests and the agent see it: over streams in memory, over a real unix socket, and, in network
//! namespaces, through the real tunnel from a guest's kernel on.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may panic"
)]

mod aws_sdk;
mod cloud_init;
mod control;
mod disk_full;
mod fixture;
mod identity;
#[path = "../../../waifud-wireguard/tests/kit/mod.rs"]
mod kit;
mod limits;
mod phone_home;
mod redis;
mod restart;
mod tunnel;
