//! Certificates and keys in PEM format (RFC 7468), and their digests.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use waifud_types::Digest;

use crate::PkiError;

/// The SHA-256 of a certificate, or of other bytes.
pub fn fingerprint(bytes: &[u8]) -> Digest {
    Digest::of(bytes)
}

/// `3F:9C:…`, as openssl prints a fingerprint.
pub fn as_openssl_prints(fingerprint: Digest) -> String {
    let text = fingerprint.to_string().to_ascii_uppercase();
    let hex = text.rsplit(':').next().unwrap_or(&text);
    let pairs = hex.as_bytes().chunks(2).map(String::from_utf8_lossy);
    pairs.collect::<Vec<_>>().join(":")
}

/// All certificates in a text. Other text is skipped.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    found
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or(PkiError::Text("there is no certificate in the text"))
}

/// A certificate in PEM format.
pub fn to_pem(certificate: &CertificateDer<'_>) -> String {
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in STANDARD.encode(certificate).as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

pub(crate) fn private_key(text: &str) -> Result<PrivateKeyDer<'static>, PkiError> {
    PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|_| PkiError::Text("there is no private key in the text"))
}
