//! What can go wrong with keys and certificates. No error carries a key.

use std::path::PathBuf;

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A key or certificate could not be made.
    #[error("the certificate can't be made")]
    Make(#[source] rcgen::Error),
    /// A certificate signing request is none, or is not signed by its own key.
    #[error("that is no certificate signing request that is signed by its own key")]
    Request(#[source] rcgen::Error),
    /// The request is of a kind of key that is not taken.
    #[error("the request's key is of a kind that is not taken; ECDSA on P-256 is wanted")]
    KeyKind,
    /// The text holds no certificate, or not exactly the one that is wanted.
    #[error("{0}")]
    Text(&'static str),
    /// A file can't be read or written.
    #[error("{path:?} can't be {what}")]
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
    #[error("{path:?} does not hold what it should; put it back from a backup, or move it away")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<PkiError>,
    },
    /// TLS can't be set up with these keys.
    #[error("TLS can't be set up")]
    Tls(#[source] rustls::Error),
    /// The certificate does not name a node.
    #[error("the certificate does not name a node")]
    NoNode,
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

impl From<rustls::Error> for PkiError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}
