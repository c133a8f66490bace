//! Who the caller is and what it may do: connections, tokens, roles and the limits of one token.

pub mod access;
mod certificates;
pub(crate) mod failed_logins;
pub(crate) mod holdings;
pub(crate) mod principal;
pub(crate) mod problems;
pub(crate) mod tokens;
