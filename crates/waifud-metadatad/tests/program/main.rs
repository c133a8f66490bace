//! The real program as a process: started, configured, queried by guests through the tunnel, killed, stopped.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests may panic")]

mod guests;
#[path = "../../../waifud-wireguard/tests/kit/mod.rs"]
mod kit;
mod life;
mod process;
