//! TLS between two nodes: both ends authenticate with the certificates that waifud has issued to them.
//!
//! The certificates of nodes are for clients (RFC 5280, section 4.2.1.12). Here both ends have such a certificate: the
//! listening node is verified like a client, and must be the one that is expected, with the expected key. Only nodes speak
//! this protocol, and it has an ALPN name of its own, so that a connection to waifud cannot be redirected here.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, CipherSuite, ClientConfig, Error, ServerConfig, SupportedCipherSuite,
    version::TLS13,
};

use crate::tls::roots;
use crate::verifier::{Decide, Presented, config_with};
use crate::{Identity, NodePeer, PkiError};

/// The application protocol (RFC 7301).
const ALPN: &[u8] = b"waifud-node/1";

/// The configuration of the node that listens. Clients without a certificate of this CA are refused. Sessions are not
/// resumed, so that each connection proves the client's identity.
pub fn node_server_config(
    ca: &CertificateDer<'static>,
    own: &Identity,
) -> Result<Arc<ServerConfig>, PkiError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(fast_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(nodes_of(ca)?)
        .with_single_cert(own.chain().to_vec(), own.key()?)?;
    config.ignore_client_order = true;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The provider with AES-128 before AES-256, which needs 14 rounds for each block instead of 10: disks are large.
fn fast_provider() -> CryptoProvider {
    let mut provider = default_provider();
    let is_fast =
        |suite: &SupportedCipherSuite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256;
    // Stable: the others keep their order.
    provider.cipher_suites.sort_by_key(|suite| !is_fast(suite));
    provider
}

/// The configuration of the node that connects to `expected`.
pub fn node_client_config(
    ca: &CertificateDer<'static>,
    own: &Identity,
    expected: NodePeer,
) -> Result<Arc<ClientConfig>, PkiError> {
    let decide = Expected {
        nodes: nodes_of(ca)?,
        peer: expected,
    };
    let mut config = config_with(decide, Some(own))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Accepts certificates that this CA has issued to nodes.
fn nodes_of(ca: &CertificateDer<'static>) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let provider = Arc::new(default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider)
        .build()
        .map_err(|error| Error::General(error.to_string()))
}

/// Accepts one node, with one key.
#[derive(Debug)]
struct Expected {
    nodes: Arc<dyn ClientCertVerifier>,
    peer: NodePeer,
}

impl Decide for Expected {
    fn decide(&self, presented: &Presented<'_>) -> Result<(), Error> {
        self.nodes
            .verify_client_cert(presented.own, presented.intermediates, presented.now)?;
        let peer = NodePeer::of(presented.own)
            .map_err(|_| CertificateError::ApplicationVerificationFailure)?;
        if peer != self.peer {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(())
    }
}
