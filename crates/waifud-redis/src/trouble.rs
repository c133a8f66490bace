//! Why Redis cannot be used. Never contains credentials, nor text that Redis sent.

use std::time::Duration;

/// Why Redis cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Trouble {
    /// The access is invalid.
    #[error("the setting is invalid: {why}")]
    Setting {
        /// Why.
        why: String,
    },
    /// No connection, or it broke.
    #[error("cannot reach Redis at {address}: {why}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// The error of the system.
        why: String,
    },
    /// No answer within the limit.
    #[error("Redis at {address} did not answer within {} ms", after.as_millis())]
    Slow {
        /// Host and port.
        address: String,
        /// The limit.
        after: Duration,
    },
    /// TLS could not be negotiated, or the certificate is not accepted.
    #[error("TLS with Redis at {address} failed: {why}")]
    Tls {
        /// Host and port.
        address: String,
        /// The error of TLS.
        why: String,
    },
    /// User or password are wrong, or missing.
    #[error("Redis at {address} refused the user name or the password of {user}")]
    Credentials {
        /// Host and port.
        address: String,
        /// The user.
        user: String,
    },
    /// The user lacks a permission.
    #[error("the user {user} may not {action} at {address}")]
    Denied {
        /// Host and port.
        address: String,
        /// The user.
        user: String,
        /// What was tried.
        action: &'static str,
    },
    /// `maxmemory` is reached, and the policy evicts nothing.
    #[error("Redis at {address} is full: maxmemory is reached, and its policy is noeviction")]
    Full {
        /// Host and port.
        address: String,
    },
    /// Redis answered with another error.
    #[error("Redis at {address} answered with the error {code}")]
    Refused {
        /// Host and port.
        address: String,
        /// The code at the beginning of the error.
        code: String,
    },
}

impl Trouble {
    /// A stable reason for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Setting { .. } => "invalid-setting",
            Self::Unreachable { .. } => "unreachable",
            Self::Slow { .. } => "slow",
            Self::Tls { .. } => "tls-failed",
            Self::Credentials { .. } => "wrong-credentials",
            Self::Denied { .. } => "denied",
            Self::Full { .. } => "full",
            Self::Refused { .. } => "refused",
        }
    }
}
