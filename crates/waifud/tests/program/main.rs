//! The real waifud as a program: its process, its sockets, HTTPS, tokens and joining.

#![expect(clippy::unwrap_used, clippy::panic, reason = "test helpers may panic")]

mod https;
mod joining;
mod kit;
mod process;
mod tokens;
