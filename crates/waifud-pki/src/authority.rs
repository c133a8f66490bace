//! The private CA and the certificates that it issues.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::CertificateDer;
use waifud_types::{Digest, NodeId};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::node::uri;
use crate::params::{common, end_of_issued};
use crate::pem::{fingerprint, to_pem};
use crate::tls::is_good;
use crate::{Identity, NodeRequest, PkiError, SERVER_NAME, certificates, files, write_durably};

/// The CA's key and certificate, in one file so that a crash cannot separate them.
const FILE: &str = "ca.key";
/// The certificate alone, for clients that must trust it.
const PUBLIC: &str = "ca.crt";
/// The key and certificates of waifud's server.
const SERVER: &str = "server.key";

/// The private CA.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Creates a new CA.
    pub fn generate() -> Result<Self, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(PkiError::Make)?;
        let mut params = common("waifud CA", 9999)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(PkiError::Make)?;
        Self::of(key, certificate.into())
    }

    fn of(key: KeyPair, certificate: CertificateDer<'static>) -> Result<Self, PkiError> {
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(PkiError::Make)?;
        Ok(Self {
            certificate,
            issuer,
        })
    }

    /// Opens the CA in a directory, or creates it (0600) if there is none. A file that cannot be read is an error and
    /// is never replaced, because all nodes trust the existing CA.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        let path = dir.join(FILE);
        let authority = if let Some(text) = files::read(&path)? {
            Self::parse(&text).map_err(|source| PkiError::BadFile {
                path,
                source: Box::new(source),
            })?
        } else {
            let made = Self::generate()?;
            let text = format!("{}{}", made.issuer.key().serialize_pem(), made.to_pem());
            write_durably(&path, &text, 0o600)?;
            made
        };
        let public = authority.to_pem();
        let path = Self::public_file(dir);
        if files::read(&path)?.as_deref() != Some(&public) {
            write_durably(&path, &public, 0o644)?;
        }
        Ok(authority)
    }

    fn parse(text: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(text)
            .map_err(|_| PkiError::Text("there is no private key in the text"))?;
        let certificate = certificates(text)?.swap_remove(0);
        let authority = Self::of(key, certificate)?;
        // Certificates issued with another CA's key would not be accepted.
        let own = authority.issue_server(&[])?;
        is_good(authority.certificate(), &own)?;
        Ok(authority)
    }

    /// The path where [`Authority::open`] stores the certificate alone.
    pub fn public_file(dir: &Path) -> PathBuf {
        dir.join(PUBLIC)
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its certificate in PEM format.
    pub fn to_pem(&self) -> String {
        to_pem(&self.certificate)
    }

    /// The SHA-256 of its certificate, by which nodes identify it before they trust it.
    pub fn fingerprint(&self) -> Digest {
        fingerprint(&self.certificate)
    }

    /// Issues a node's certificate, in PEM format.
    pub fn issue_node(&self, request: &NodeRequest, node: NodeId) -> Result<String, PkiError> {
        let mut params = common(&format!("node {node}"), end_of_issued())?;
        let name = Ia5String::try_from(uri(node)).map_err(PkiError::Make)?;
        params.subject_alt_names = vec![SanType::URI(name)];
        leaf(&mut params, ExtendedKeyUsagePurpose::ClientAuth);
        let certificate = params
            .signed_by(request.key(), &self.issuer)
            .map_err(PkiError::Make)?;
        Ok(to_pem(certificate.der()))
    }

    /// Issues the key and certificates of waifud's server, for these names and addresses and [`SERVER_NAME`].
    pub fn issue_server(&self, names: &[String]) -> Result<Identity, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(PkiError::Make)?;
        let mut params = common("waifud", end_of_issued())?;
        for name in std::iter::once(SERVER_NAME).chain(names.iter().map(String::as_str)) {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(Ia5String::try_from(name).map_err(PkiError::Make)?),
            });
        }
        leaf(&mut params, ExtendedKeyUsagePurpose::ServerAuth);
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(PkiError::Make)?;
        let chain = vec![certificate.into(), self.certificate.clone()];
        Ok(Identity::new(&key, chain))
    }

    /// The key and certificates of waifud's server from the directory. They are replaced if they are missing, invalid,
    /// for other names or of another CA; only clients of this CA use them.
    pub fn open_server(&self, dir: &Path, names: &[String]) -> Result<Identity, PkiError> {
        let path = dir.join(SERVER);
        // PEM parsers skip text before the first block.
        let head = format!("# {} for {}\n", self.fingerprint(), names.join(" "));
        if let Some(text) = files::read(&path)?
            && text.starts_with(&head)
            && let Ok(identity) = Identity::from_pem(&text, &text)
            && is_good(&self.certificate, &identity).is_ok()
        {
            return Ok(identity);
        }
        let identity = self.issue_server(names)?;
        write_durably(&path, &format!("{head}{}", identity.to_pem()), 0o600)?;
        Ok(identity)
    }
}

/// The server certificate that [`Authority::open_server`] stored in the directory, if any.
pub fn server_certificate(dir: &Path) -> Result<Option<CertificateDer<'static>>, PkiError> {
    let Some(text) = files::read(&dir.join(SERVER))? else {
        return Ok(None);
    };
    Ok(certificates(&text)?.into_iter().next())
}

/// The pin of a certificate's public key as `curl --pinnedpubkey` expects it: `sha256//` and, in base64, the SHA-256 of
/// its `SubjectPublicKeyInfo` in DER (RFC 7469, section 2.4).
pub fn public_key_pin(certificate: &CertificateDer<'_>) -> Result<String, PkiError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|_| PkiError::Text("this is not a certificate"))?;
    let digest = Digest::of(parsed.public_key().raw);
    Ok(format!("sha256//{}", STANDARD.encode(digest.bytes())))
}

fn leaf(params: &mut CertificateParams, purpose: ExtendedKeyUsagePurpose) {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
}
