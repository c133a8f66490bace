//! What can go wrong with keys and certificates. No error carries a key.

use std::path::PathBuf;

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A key or certificate could not be made.
    #[error("cannot create the certificate")]
    Make(#[source] rcgen::Error),
    /// A certificate signing request is none, or is not signed by its own key.
    #[error("invalid certificate signing request: it must be signed with its own key")]
    Request(#[source] rcgen::Error),
    /// The request is of a kind of key that is not taken.
    #[error("the request's key has an unsupported type; use ECDSA on P-256")]
    KeyKind,
    /// The text holds no certificate, or not exactly the one that is wanted.
    #[error("{0}")]
    Text(&'static str),
    /// A file can't be read or written.
    #[error("{path:?} cannot be {what}")]
    File {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file holds something else than it should. It is left as it is.
    #[error("{path:?} has unexpected contents; restore it from a backup, or move it away")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<PkiError>,
    },
    /// cannot set up TLS with these keys.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// The certificate does not name a node.
    #[error("the certificate does not name a node")]
    NoNode,
    /// The system gives no random numbers.
    #[error("the system provides no random numbers")]
    Random,
}

impl From<rustls::Error> for PkiError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}
