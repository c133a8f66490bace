//! Parameters that all certificates share.

use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DnType, SerialNumber, date_time_ymd};
use ring::rand::{SecureRandom, SystemRandom};

use crate::PkiError;

/// The validity of issued certificates in years, in addition to the rest of the current year.
pub const YEARS: i32 = 20;
/// An earlier time means that the clock was never set.
const BUILT: i32 = 2026;
/// The mean Gregorian year, in seconds: 365.2425 days.
const YEAR_SECONDS: u64 = 31_556_952;

/// The parameters of a certificate with this name, valid from 1970 until `until` (1 January).
pub(crate) fn common(name: &str, until: i32) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(serial()?);
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// The year in which certificates issued now expire.
pub(crate) fn end_of_issued() -> i32 {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let year = 1970 + i32::try_from(seconds / YEAR_SECONDS).unwrap_or(0);
    // A clock in the far future must not lead to a date that cannot be encoded.
    year.clamp(BUILT, 9000) + YEARS + 1
}

/// A random serial number: positive, at most 20 octets (RFC 5280, section 4.1.2.2).
fn serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| PkiError::Random)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
