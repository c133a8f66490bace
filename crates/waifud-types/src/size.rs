//! Sizes in bytes. People write them with a unit; `2G` means GiB everywhere.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A size in bytes; a whole number on the wire.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

/// Why a text is not a size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ByteSizeError {
    /// `20`: gigabytes or bytes? Nobody should have to guess.
    #[error("{0:?} has no unit: write for example {0}G or {0}M")]
    NoUnit(String),
    /// A minus sign.
    #[error("{0:?} is negative: a size is at least 1M")]
    Negative(String),
    /// Zero of anything.
    #[error("a size can't be zero")]
    Zero,
    /// More than 8 EiB, the largest file offset.
    #[error("{0:?} is larger than anything that can be stored")]
    TooLarge(String),
    /// Not a number with a unit.
    #[error("{0:?} is not a size: write a number and K, M, G or T, such as 512M or 20G")]
    Malformed(String),
}

impl ByteSize {
    /// From a number of MiB (2^20 bytes); saturates.
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 20))
    }

    /// From a number of GiB (2^30 bytes); saturates.
    pub const fn gib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 30))
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    /// Reads `512M`, `20G`, `20GiB`, `1.5G`, `2t`; powers of 1024.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let shown = || text.chars().take(40).collect::<String>();
        if text.starts_with('-') {
            return Err(ByteSizeError::Negative(shown()));
        }
        let end = text
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        if number.is_empty()
            || number.matches('.').count() > 1
            || number.starts_with('.')
            || number.ends_with('.')
        {
            return Err(ByteSizeError::Malformed(shown()));
        }
        let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" if number.bytes().all(|b| matches!(b, b'0' | b'.')) => {
                return Err(ByteSizeError::Zero);
            }
            "" => return Err(ByteSizeError::NoUnit(shown())),
            "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            "p" | "pb" | "pib" => 50,
            _ => return Err(ByteSizeError::Malformed(shown())),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let too_large = || ByteSizeError::TooLarge(shown());
        let whole: u128 = whole.parse().map_err(|_| too_large())?;
        if fraction.len() > 12 {
            return Err(ByteSizeError::Malformed(shown()));
        }
        let scale = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(12));
        let fraction: u128 = if fraction.is_empty() {
            0
        } else {
            fraction.parse().map_err(|_| too_large())?
        };
        let bytes = whole
            .checked_mul(1 << shift)
            .and_then(|w| w.checked_add((fraction << shift) / scale))
            .filter(|b| *b <= u128::from(i64::MAX.unsigned_abs()))
            .and_then(|b| u64::try_from(b).ok())
            .ok_or_else(too_large)?;
        if bytes == 0 {
            Err(ByteSizeError::Zero)
        } else {
            Ok(Self(bytes))
        }
    }
}

impl fmt::Display for ByteSize {
    /// As people read it: `20G`, `1.5G`, `512M`, at most one decimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(50, "P"), (40, "T"), (30, "G"), (20, "M"), (10, "K")] {
            if self.0 >= 1 << shift {
                let tenths = (u128::from(self.0) * 10) >> shift;
                let (whole, tenth) = (tenths / 10, tenths % 10);
                return if tenth == 0 {
                    write!(f, "{whole}{unit}")
                } else {
                    write!(f, "{whole}.{tenth}{unit}")
                };
            }
        }
        write!(f, "{}B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn people_write_units_in_many_ways() {
        for (text, bytes) in [
            ("2G", 2 << 30),
            ("2GiB", 2 << 30),
            ("512m", 512 << 20),
            ("1.5G", 3 << 29),
            ("4K", 4096),
            ("1 T", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn wrong_sizes_say_what_is_wrong() {
        assert!(matches!(
            "20".parse::<ByteSize>(),
            Err(ByteSizeError::NoUnit(_))
        ));
        assert!(matches!(
            "-1G".parse::<ByteSize>(),
            Err(ByteSizeError::Negative(_))
        ));
        assert!(matches!("0G".parse::<ByteSize>(), Err(ByteSizeError::Zero)));
        assert!(matches!("0".parse::<ByteSize>(), Err(ByteSizeError::Zero)));
        assert!(matches!(
            "9999999999999T".parse::<ByteSize>(),
            Err(ByteSizeError::TooLarge(_))
        ));
        for bad in ["", "G", "1.2.3G", "1X", ".5G", "1.G", "0x10G"] {
            assert!(
                matches!(bad.parse::<ByteSize>(), Err(ByteSizeError::Malformed(_))),
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            let _ = text.parse::<ByteSize>();
        }

        #[test]
        fn whole_mebibytes_survive_their_text(n in 1_u64..1024) {
            prop_assert_eq!(ByteSize::mib(n).to_string().parse::<ByteSize>(), Ok(ByteSize::mib(n)));
        }
    }
}
