//! The real waifud as a program: its process, its sockets, HTTPS, tokens and joining.

#![expect(clippy::unwrap_used, clippy::panic, reason = "test helpers may panic")]

mod backup;
mod https;
mod joining;
mod kit;
mod placement;
mod process;
mod redis;
mod settings;
mod streams;
mod tokens;
