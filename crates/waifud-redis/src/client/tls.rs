//! TLS to Redis: its certificate must be issued by one of the configured CAs, for the host in the URL.

use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{Endpoint, RedisAccess, Trouble};

/// A connection, encrypted or not.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Encrypts the connection if the endpoint says so.
pub async fn wrap(
    access: &RedisAccess,
    endpoint: &Endpoint,
    stream: TcpStream,
) -> Result<Box<dyn Stream>, Trouble> {
    if !endpoint.tls {
        return Ok(Box::new(stream));
    }
    let setting = |why: String| Trouble::Setting { why };
    let pem = access.ca.as_deref().unwrap_or_default();
    let config = config(pem).map_err(setting)?;
    let name = ServerName::try_from(endpoint.host.clone())
        .map_err(|_| setting("the host is not a name that a certificate can have".to_owned()))?;
    let encrypted = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let encrypted = encrypted.await.map_err(|error| Trouble::Tls {
        address: endpoint.to_string(),
        why: error.to_string(),
    })?;
    Ok(Box::new(encrypted))
}

/// Refuses a text without certificates that can be used as CAs.
///
/// # Errors
/// What is wrong with it.
pub fn check_ca(pem: &str) -> Result<(), String> {
    roots(pem).map(|_| ())
}

fn config(pem: &str) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder
        .with_root_certificates(roots(pem)?)
        .with_no_client_auth())
}

fn roots(pem: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|_| "the CA is not valid PEM".to_owned())?;
        roots
            .add(certificate)
            .map_err(|error| format!("the CA cannot be used: {error}"))?;
    }
    if roots.is_empty() {
        return Err("there is no CA certificate in PEM".to_owned());
    }
    Ok(roots)
}
