//! User-data that is compressed or encoded as base64.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use waifud_types::spec::limits::USER_DATA_MAX;

use super::error::UserDataError;
use super::kind::{UserDataKind, kind_of};

/// What a base64 text encodes, if cloud-init could use it once decoded.
pub(super) fn in_base64(text: &str) -> Option<&'static str> {
    let packed: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let bytes = STANDARD.decode(packed).ok()?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return Some("gzip");
    }
    let text = String::from_utf8(bytes).ok()?;
    matches!(kind_of(&text), Ok(kind) if kind != UserDataKind::Empty).then_some("user-data")
}

/// Decompresses user-data, for example from `make-mime | gzip` or Terraform's `cloudinit_config`.
///
/// # Errors
/// The data is damaged, not UTF-8, or more than 1 MiB once decompressed. No more than that is decompressed.
pub fn unpack_user_data(bytes: &[u8]) -> Result<String, UserDataError> {
    let mut text = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes)
        .take(USER_DATA_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|_| UserDataError::of_part("its gzip data is damaged"))?;
    let found = text.len() as u64;
    if found > USER_DATA_MAX {
        return Err(UserDataError::TooLong { found });
    }
    String::from_utf8(text)
        .map_err(|_| UserDataError::of_part("its gzip data does not contain UTF-8 text"))
}
