//! A certificate verifier with a decision of its own: TLS 1.3 only, and signatures are checked as usual.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring::default_provider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme, version::TLS13};

use crate::{Identity, PkiError};

/// Decides whether a server's certificates are accepted.
pub(crate) trait Decide: fmt::Debug + Send + Sync + 'static {
    /// Returns an error to refuse them.
    fn decide(&self, presented: &Presented<'_>) -> Result<(), Error>;
}

/// What a server presents in a handshake.
pub(crate) struct Presented<'a> {
    /// The server's own certificate.
    pub(crate) own: &'a CertificateDer<'a>,
    pub(crate) intermediates: &'a [CertificateDer<'a>],
    /// The name that the client expects.
    pub(crate) name: &'a ServerName<'a>,
    pub(crate) now: UnixTime,
}

/// The configuration of a client for which `decide` accepts or refuses servers. With an identity, the client authenticates
/// with it.
pub(crate) fn config_with(
    decide: impl Decide,
    own: Option<&Identity>,
) -> Result<ClientConfig, PkiError> {
    let provider = Arc::new(default_provider());
    let verifier = Verifier {
        decide,
        provider: Arc::clone(&provider),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    Ok(match own {
        Some(own) => builder.with_client_auth_cert(own.chain().to_vec(), own.key()?)?,
        None => builder.with_no_client_auth(),
    })
}

#[derive(Debug)]
struct Verifier<D> {
    decide: D,
    provider: Arc<CryptoProvider>,
}

impl<D: Decide> ServerCertVerifier for Verifier<D> {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.decide.decide(&Presented {
            own,
            intermediates,
            name,
            now,
        })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not supported".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
