//! Streams that waifud requests: checked, opened, and joined with a connection that this node dials to waifud.
//!
//! A request gives access to a part of one instance of this node: the address comes from the instance's own spec, never
//! from the request.

mod console;
mod context;
mod dial;
mod guest_command;
mod guest_file;
mod log;
mod refusal;
pub(crate) mod requests;
mod server;
mod target;

pub(crate) use context::{Consoles, StreamServer};
pub use dial::{GuestConnection, GuestDialer, TcpDialer};
pub(crate) use server::run;
