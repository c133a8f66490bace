//! A node's key, its request for a certificate, and what its certificate says.

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKey,
    PublicKeyData,
};
use rustls::pki_types::CertificateDer;
use waifud_types::{Digest, NodeId};
use webpki::EndEntityCert;

use crate::{PkiError, fingerprint};

/// What a node's id is written behind, in the SAN.
const SCHEME: &str = "waifud:node:";
/// A request of ours has about 500 bytes.
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
    /// A new key.
    pub fn generate() -> Result<Self, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(PkiError::Make)?;
        Ok(Self { key })
    }

    /// The key of a text that [`NodeKey::to_pem`] made.
    pub fn from_pem(text: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(text)
            .map_err(|_| PkiError::Text("there is no private key in the text"))?;
        Ok(Self { key })
    }

    /// As text, for a file that only root reads.
    pub fn to_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The request for a certificate (PKCS #10, RFC 2986), as text. It says nothing but the public key.
    pub fn request(&self) -> Result<String, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .serialize_request(&self.key)
            .and_then(|request| request.pem())
            .map_err(PkiError::Make)
    }

    /// The digest that the node's row will hold.
    pub fn digest(&self) -> Digest {
        fingerprint(&self.key.subject_public_key_info())
    }
}

/// A node's request, checked: whoever made it has the private key.
#[derive(Clone, Debug)]
pub struct NodeRequest {
    key: PublicKey,
}

impl NodeRequest {
    /// Reads a request. Whatever it says beside its public key is ignored.
    pub fn parse(text: &str) -> Result<Self, PkiError> {
        if text.len() > REQUEST_MAX {
            return Err(PkiError::Text("the request is longer than any of ours"));
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

/// What a certificate says that a handshake has proven.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodePeer {
    /// The node.
    pub node: NodeId,
    /// The SHA-256 of its public key (the DER `SubjectPublicKeyInfo`).
    pub key: Digest,
}

impl NodePeer {
    /// Reads a certificate that the TLS layer has verified. Exactly one node must be named.
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

/// How a node is named in its certificate.
pub(crate) fn uri(node: NodeId) -> String {
    format!("{SCHEME}{node}")
}
