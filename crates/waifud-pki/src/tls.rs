//! TLS for both ends: version 1.3 only, with HTTP/1.1 and ring.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, ClientConfig, Error, RootCertStore, ServerConfig, version::TLS13};
use waifud_types::Digest;

use crate::verifier::{Decide, Presented, config_with};
use crate::{Identity, PkiError, fingerprint};

/// The name that is always in waifud's certificate, and that agents verify regardless of the address.
pub const SERVER_NAME: &str = "waifud";
/// The application protocol (RFC 7301).
const ALPN: &[u8] = b"http/1.1";

/// [`SERVER_NAME`] in the type of rustls.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).unwrap_or(ServerName::IpAddress(
        std::net::Ipv4Addr::UNSPECIFIED.into(),
    ))
}

/// The server's configuration. A client certificate must be issued by this CA for clients. A client without a
/// certificate is accepted and must authenticate otherwise.
pub fn server_config(
    ca: &CertificateDer<'static>,
    own: &Identity,
) -> Result<Arc<ServerConfig>, PkiError> {
    let provider = Arc::new(default_provider());
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| PkiError::Tls(Error::General(error.to_string())))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(own.chain().to_vec(), own.key()?)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// The client's configuration: the server's certificate must be issued by this CA. With an identity, the client
/// authenticates with it.
pub fn client_config(
    ca: &CertificateDer<'static>,
    own: Option<&Identity>,
) -> Result<Arc<ClientConfig>, PkiError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(ca)?);
    let mut config = match own {
        Some(own) => builder.with_client_auth_cert(own.chain().to_vec(), own.key()?)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// The configuration of a client that does not have the CA yet: the server must send the CA with this fingerprint, and
/// its certificate must be issued by it.
pub fn join_config(ca: Digest) -> Result<Arc<ClientConfig>, PkiError> {
    let mut config = config_with(Pinned(ca), None)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// Whether clients of this CA accept waifud's identity: the key matches the certificate, which the CA has issued.
pub(crate) fn is_good(ca: &CertificateDer<'static>, own: &Identity) -> Result<(), PkiError> {
    server_config(ca, own)?;
    let own = own.chain().first().ok_or(PkiError::NoNode)?;
    verifier_of(ca)?.verify_server_cert(own, &[], &server_name(), &[], UnixTime::now())?;
    Ok(())
}

pub(crate) fn roots(ca: &CertificateDer<'static>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    Ok(roots)
}

/// Trusts the CA with one fingerprint, which the server must send.
#[derive(Debug)]
struct Pinned(Digest);

impl Decide for Pinned {
    fn decide(&self, presented: &Presented<'_>) -> Result<(), Error> {
        let ca = presented
            .intermediates
            .iter()
            .find(|certificate| fingerprint(certificate) == self.0)
            .ok_or(CertificateError::UnknownIssuer)?;
        verifier_of(&ca.clone().into_owned())?.verify_server_cert(
            presented.own,
            presented.intermediates,
            presented.name,
            &[],
            presented.now,
        )?;
        Ok(())
    }
}

/// Accepts servers whose certificate this CA has issued.
fn verifier_of(ca: &CertificateDer<'static>) -> Result<Arc<WebPkiServerVerifier>, Error> {
    let provider = Arc::new(default_provider());
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots(ca)?), provider)
        .build()
        .map_err(|error| Error::General(error.to_string()))
}
