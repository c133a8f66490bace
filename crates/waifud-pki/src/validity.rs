//! The expiry of a certificate.

use rustls::pki_types::CertificateDer;
use waifud_types::Timestamp;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::PkiError;

/// The certificate's `notAfter` (RFC 5280, section 4.1.2.5).
pub fn valid_until(certificate: &CertificateDer<'_>) -> Result<Timestamp, PkiError> {
    let unreadable = || PkiError::Text("the certificate's dates cannot be read");
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| unreadable())?;
    Timestamp::from_second(parsed.validity().not_after.timestamp()).map_err(|_| unreadable())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, NodeKey, NodeRequest, certificates};

    #[test]
    fn expiry_dates_of_issued_certificates_are_read() {
        let authority = Authority::generate().unwrap();
        let end = valid_until(authority.certificate()).unwrap();
        assert_eq!(end.to_string(), "9999-01-01T00:00:00Z");
        let request = NodeRequest::parse(&NodeKey::generate().unwrap().request().unwrap()).unwrap();
        let node = waifud_types::NodeId::from_uuid(uuid::Uuid::nil());
        let text = authority.issue_node(&request, node).unwrap();
        let end = valid_until(&certificates(&text).unwrap()[0]).unwrap();
        let years = end.duration_since(Timestamp::now()).as_hours() / (365 * 24);
        assert!((19..=21).contains(&years), "{end}");
        assert!(valid_until(&CertificateDer::from(vec![1, 2, 3])).is_err());
    }
}
