//! Checksums of images by their publishers: SHA-256 or SHA-512 (FIPS 180-4).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::string_conversions;

/// A publisher's checksum, written `sha256:` or `sha512:` and its lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$")]
pub struct Checksum(String);

/// The hash algorithm of a checksum.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ChecksumAlgorithm {
    /// 32 bytes.
    Sha256,
    /// 64 bytes.
    Sha512,
}

names! {
    /// The prefix before the colon.
    ChecksumAlgorithm {
        Sha256 => "sha256",
        Sha512 => "sha512",
    }
}

impl ChecksumAlgorithm {
    /// Number of hexadecimal digits of a checksum.
    pub const fn digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// The text is not a checksum.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a checksum: expected sha256: and 64, or sha512: and 128 hexadecimal digits")]
pub struct ChecksumError(String);

impl Checksum {
    /// Parses hexadecimal digits without a prefix; the algorithm follows from their number. `None` for any other text.
    pub fn from_hex(text: &str) -> Option<Self> {
        let algorithm = [ChecksumAlgorithm::Sha256, ChecksumAlgorithm::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.digits() == text.len())?;
        text.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| {
            Self(format!(
                "{}:{}",
                algorithm.as_str(),
                text.to_ascii_lowercase()
            ))
        })
    }

    /// The hash algorithm.
    pub fn algorithm(&self) -> ChecksumAlgorithm {
        if self.0.starts_with("sha512") {
            ChecksumAlgorithm::Sha512
        } else {
            ChecksumAlgorithm::Sha256
        }
    }

    /// Its digits, in lower case.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }
}

impl FromStr for Checksum {
    type Err = ChecksumError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ChecksumError(text.chars().take(150).collect());
        let (word, hex) = text.split_once(':').ok_or_else(error)?;
        Self::from_hex(hex)
            .filter(|checksum| checksum.algorithm().as_str() == word.to_ascii_lowercase())
            .ok_or_else(error)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

string_conversions!(Checksum);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_unchanged_by_formatting_and_parsing() {
        for text in [
            format!("sha256:{}", "ab".repeat(32)),
            format!("sha512:{}", "0f".repeat(64)),
        ] {
            assert_eq!(text.parse::<Checksum>().unwrap().to_string(), text);
            let loud = text.to_ascii_uppercase();
            assert_eq!(loud.parse::<Checksum>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in [
            String::new(),
            "sha256:".to_owned(),
            "ab".repeat(32),
            format!("sha512:{}", "ab".repeat(32)),
            format!("md5:{}", "ab".repeat(16)),
            format!("sha256:{}", "zz".repeat(32)),
        ] {
            assert!(bad.parse::<Checksum>().is_err(), "{bad}");
        }
    }
}
