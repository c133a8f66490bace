//! Reads a server's certificates before they are trusted.
//!
//! The handshake is always refused after the certificates were received, so nothing can be sent over an unverified
//! connection. A client that decides to trust the CA connects again, with [`client_config`](crate::client_config).

use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, ClientConfig, Error};

use crate::PkiError;
use crate::verifier::{Decide, Presented, config_with};

/// The certificates that a server presented.
#[derive(Clone, Debug, Default)]
pub struct PresentedCertificates(Arc<Mutex<Vec<CertificateDer<'static>>>>);

impl PresentedCertificates {
    /// Its certificates in order, its own first; empty if there was no handshake.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// For one handshake, which fails after the certificates were received.
pub fn peek_config() -> Result<(Arc<ClientConfig>, PresentedCertificates), PkiError> {
    let presented = PresentedCertificates::default();
    Ok((Arc::new(config_with(presented.clone(), None)?), presented))
}

/// Stores the certificates and refuses them.
impl Decide for PresentedCertificates {
    fn decide(&self, presented: &Presented<'_>) -> Result<(), Error> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = std::iter::once(presented.own)
            .chain(presented.intermediates)
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        Err(CertificateError::ApplicationVerificationFailure.into())
    }
}
