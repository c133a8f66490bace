//! Checks user-data before a guest boots: whether cloud-init would use all of it.
//!
//! cloud-init ignores user-data that it cannot read, with a line in the guest's log. So such user-data is refused here,
//! with the place and the reason. Nothing is checked that depends on the guest: what a script does, what a URL returns, or
//! what a template renders to.

mod archive;
mod content_type;
mod encoded;
mod error;
mod kind;
mod mime;
mod single;

use waifud_types::spec::limits::USER_DATA_MAX;

use crate::yaml::Document;

pub use encoded::unpack_user_data;
pub use error::UserDataError;
pub use kind::UserDataKind;

/// Checks user-data and returns its kind.
pub fn validate_user_data(text: &str) -> Result<UserDataKind, UserDataError> {
    parse_user_data(text).map(|(kind, _)| kind)
}

/// Checks user-data, and returns its kind and the document of a `#cloud-config`.
pub(crate) fn parse_user_data(
    text: &str,
) -> Result<(UserDataKind, Option<Document>), UserDataError> {
    let found = text.len() as u64;
    if found > USER_DATA_MAX {
        return Err(UserDataError::TooLong { found });
    }
    if text.starts_with('\u{feff}') {
        return Err(UserDataError::ByteOrderMark);
    }
    let binary = |b: u8| b.is_ascii_control() && !matches!(b, b'\t' | b'\n' | b'\r');
    if let Some(at) = text.bytes().position(binary) {
        let line = 1 + text.bytes().take(at).filter(|b| *b == b'\n').count();
        return Err(UserDataError::Binary { line });
    }
    let kind = match kind::kind_of(text) {
        Err(UserDataError::UnknownKind { hint }) => {
            return Err(match encoded::in_base64(text) {
                Some(what) => UserDataError::Base64 { what },
                None => UserDataError::UnknownKind { hint },
            });
        }
        known => known?,
    };
    let mut document = None;
    match kind {
        UserDataKind::CloudConfig => document = Some(single::cloud_config(text)?),
        UserDataKind::Mime => mime::check_message(text)?,
        UserDataKind::CloudConfigArchive => archive::check(text)?,
        kind => single::check(kind, text)?,
    }
    Ok((kind, document))
}
