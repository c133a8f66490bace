//! Errors about keys and certificates. They never contain a key.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A key or certificate could not be created.
    #[error("cannot create the certificate")]
    Make(#[source] rcgen::Error),
    /// The certificate signing request is invalid, or not signed with its own key.
    #[error("invalid certificate signing request: it must be signed with its own key")]
    Request(#[source] rcgen::Error),
    /// The key in the request has an unsupported type.
    #[error("the request's key has an unsupported type; use ECDSA on P-256")]
    KeyKind,
    /// The text does not contain the expected certificate or key.
    #[error("{0}")]
    Text(&'static str),
    /// A file could not be read or written.
    #[error("{path:?} cannot be {what}")]
    File {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        what: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file has unexpected contents and was not changed.
    #[error("{path:?} has unexpected contents; restore it from a backup, or move it away")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<PkiError>,
    },
    /// TLS cannot be set up with these keys.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// The certificate does not name a node.
    #[error("the certificate does not name a node")]
    NoNode,
    /// The system provides no random numbers.
    #[error("cannot get random numbers from the operating system")]
    Random,
}

impl From<rustls::Error> for PkiError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}
