//! A private key with its certificates, by which one end of a connection authenticates.

use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::{PkiError, certificates, pem};

/// A key and its chain: its own certificate first, then that of the CA.
pub struct Identity {
    key: String,
    chain: Vec<CertificateDer<'static>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// From PEM texts. Whether the key belongs to the first certificate is checked when TLS is set up.
    pub fn from_pem(key: &str, chain: &str) -> Result<Self, PkiError> {
        pem::private_key(key)?;
        Ok(Self {
            key: key.to_owned(),
            chain: certificates(chain)?,
        })
    }

    pub(crate) fn new(key: &KeyPair, chain: Vec<CertificateDer<'static>>) -> Self {
        Self {
            key: key.serialize_pem(),
            chain,
        }
    }

    /// Its certificates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>, PkiError> {
        pem::private_key(&self.key)
    }

    /// Key and certificates as one PEM text, for a file.
    pub(crate) fn to_pem(&self) -> String {
        let mut text = self.key.clone();
        for certificate in &self.chain {
            text.push_str(&pem::to_pem(certificate));
        }
        text
    }
}
