//! The expiry of waifud's own certificates. Nodes report theirs as conditions.

use waifud_api::Certificate;
use waifud_pki::{server_certificate, valid_until};

use crate::{Control, ControlError};

impl Control {
    /// The CA's certificate and waifud's server certificate.
    pub(crate) fn certificates(&self) -> Result<Vec<Certificate>, ControlError> {
        let of = |name: &str, not_after| Certificate {
            name: name.to_owned(),
            not_after,
        };
        let mut all = vec![of("ca", valid_until(self.authority().certificate())?)];
        if let Some(own) = server_certificate(&self.pki_dir())? {
            all.push(of("server", valid_until(&own)?));
        }
        Ok(all)
    }
}
