//! A node's key, its certificate signing request, and the contents of its certificate.

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKey,
    PublicKeyData,
};
use rustls::pki_types::CertificateDer;
use waifud_types::{Digest, NodeId};
use webpki::EndEntityCert;

use crate::{PkiError, fingerprint};

/// The prefix of a node's id in the SAN.
const SCHEME: &str = "waifud:node:";
/// The maximum size of a request in bytes; a node's request has about 500.
const REQUEST_MAX: usize = 8 << 10;

/// A node's private key.
pub struct NodeKey {
    key: KeyPair,
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKey").finish_non_exhaustive()
    }
}

impl NodeKey {
    /// Generates a new key.
    pub fn generate() -> Result<Self, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(PkiError::Make)?;
        Ok(Self { key })
    }

    /// Parses the output of [`NodeKey::to_pem`].
    pub fn from_pem(text: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(text)
            .map_err(|_| PkiError::Text("there is no private key in the text"))?;
        Ok(Self { key })
    }

    /// The key in PEM format, for a file that only root can read.
    pub fn to_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The certificate signing request (PKCS #10, RFC 2986), in PEM format. It contains only the public key.
    pub fn request(&self) -> Result<String, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .serialize_request(&self.key)
            .and_then(|request| request.pem())
            .map_err(PkiError::Make)
    }

    /// The digest of the public key, which the node's row contains.
    pub fn digest(&self) -> Digest {
        fingerprint(&self.key.subject_public_key_info())
    }
}

/// A verified request of a node: the sender has the private key.
#[derive(Clone, Debug)]
pub struct NodeRequest {
    key: PublicKey,
}

impl NodeRequest {
    /// Parses a request. Everything in it except the public key is ignored.
    pub fn parse(text: &str) -> Result<Self, PkiError> {
        if text.len() > REQUEST_MAX {
            return Err(PkiError::Text("the request is too long"));
        }
        let request = CertificateSigningRequestParams::from_pem(text).map_err(PkiError::Request)?;
        let key = request.public_key;
        if *key.algorithm() != PKCS_ECDSA_P256_SHA256 {
            return Err(PkiError::KeyKind);
        }
        Ok(Self { key })
    }

    /// The SHA-256 of the public key (its DER `SubjectPublicKeyInfo`).
    pub fn digest(&self) -> Digest {
        fingerprint(&self.key.subject_public_key_info())
    }

    pub(crate) fn key(&self) -> &PublicKey {
        &self.key
    }
}

/// The identity in a certificate that a handshake has verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodePeer {
    /// The node.
    pub node: NodeId,
    /// The SHA-256 of its public key (the DER `SubjectPublicKeyInfo`).
    pub key: Digest,
}

impl NodePeer {
    /// Parses a certificate that the TLS layer has verified. It must name exactly one node.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, PkiError> {
        let certificate = EndEntityCert::try_from(certificate).map_err(|_| PkiError::NoNode)?;
        let mut names = certificate.valid_uri_names();
        let node = names
            .next()
            .and_then(|name| name.strip_prefix(SCHEME))
            .and_then(|id| id.parse().ok())
            .filter(|_| names.next().is_none())
            .ok_or(PkiError::NoNode)?;
        let key = fingerprint(&certificate.subject_public_key_info());
        Ok(Self { node, key })
    }
}

/// The name of a node in its certificate.
pub(crate) fn uri(node: NodeId) -> String {
    format!("{SCHEME}{node}")
}
