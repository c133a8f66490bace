//! Sizes in bytes. Users write them with a unit; `2G` means 2 GiB.

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
    /// A number without a unit, for example `20`.
    #[error("{0:?} has no unit: write {hint}", hint = with_unit(.0))]
    NoUnit(String),
    /// A minus sign.
    #[error("{0:?} is negative")]
    Negative(String),
    /// Zero of anything.
    #[error("the size is zero")]
    Zero,
    /// More than 8 EiB, the largest file offset.
    #[error("{0:?} exceeds the limit of 8E")]
    TooLarge(String),
    /// Not a number with a unit.
    #[error("{0:?} is not a size: write a number and K, M, G or T, for example 512M or 20G")]
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

    /// The exact size with the largest unit that gives a whole number, for hints and files.
    pub fn exact(self) -> String {
        for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
            if self.0 > 0 && self.0.trailing_zeros() >= shift {
                return format!("{}{unit}", self.0 >> shift);
            }
        }
        format!("{}B", self.0)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    /// Reads `512M`, `20G`, `20Gi`, `20GiB`, `1.5G`, `2t`; powers of 1024.
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
            "k" | "kb" | "ki" | "kib" => 10,
            "m" | "mb" | "mi" | "mib" => 20,
            "g" | "gb" | "gi" | "gib" => 30,
            "t" | "tb" | "ti" | "tib" => 40,
            "p" | "pb" | "pi" | "pib" => 50,
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
    /// `20G`, `1.5G`, `512M`: rounded to one decimal of the largest unit that leaves at least 1.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(50, "P"), (40, "T"), (30, "G"), (20, "M"), (10, "K")] {
            // A value that the next smaller unit would round to 1024 is shown as 1 here.
            let rounding = (1_u64 << (shift - 10)) / 20;
            if self.0.saturating_add(rounding) >= 1 << shift {
                let tenths = ((u128::from(self.0) * 10) + (1 << (shift - 1))) >> shift;
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

/// A number that was written without a unit, with the units that were probably meant.
fn with_unit(number: &str) -> String {
    match number.parse::<u64>() {
        Ok(number) if number >= 1 << 20 => format!("{number}B"),
        Ok(number) if number >= 256 => format!("{number}M"),
        _ => format!("{number}G or {number}M"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_parsed_in_all_common_forms() {
        for (bytes, texts) in [
            (2 << 30, &["2G", "2GiB", "2Gi", "2g"][..]),
            (512 << 20, &["512m", "512Mi"]),
            (3 << 29, &["1.5G"]),
            (4096, &["4K"]),
            (1 << 40, &["1 T", "1ti"]),
            (7, &["7B"]),
            (1 << 50, &["1P", "1pib"]),
            (1, &["0.000000000001T"]),
            (8191 << 50, &["8191P"]),
        ] {
            for text in texts {
                assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
            }
        }
    }

    #[test]
    fn invalid_sizes_are_refused_with_the_reason() {
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

    #[test]
    fn more_than_twelve_decimals_and_more_than_an_i64_are_refused() {
        assert!(matches!(
            "1.0000000000000T".parse::<ByteSize>(),
            Err(ByteSizeError::Malformed(_))
        ));
        let max = i64::MAX.unsigned_abs();
        assert_eq!(format!("{max}B").parse(), Ok(ByteSize(max)));
        for text in [format!("{}B", max + 1), "8192P".to_owned()] {
            assert!(
                matches!(text.parse::<ByteSize>(), Err(ByteSizeError::TooLarge(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn an_exact_size_has_the_largest_unit_that_divides_it() {
        for (bytes, text) in [
            (0, "0B"),
            (1, "1B"),
            (1023, "1023B"),
            (1 << 10, "1K"),
            (1025, "1025B"),
            (3 << 20, "3M"),
            (1 << 30, "1G"),
            (1 << 40, "1T"),
            (5 << 50, "5120T"),
        ] {
            assert_eq!(ByteSize(bytes).exact(), text);
        }
    }

    #[test]
    fn a_number_without_a_unit_gets_a_hint_with_the_probable_unit() {
        let message = |text: &str| text.parse::<ByteSize>().unwrap_err().to_string();
        assert!(message("20").ends_with("write 20G or 20M"));
        assert!(message("255").ends_with("write 255G or 255M"));
        assert!(message("256").ends_with("write 256M"));
        assert!(message("1048575").ends_with("write 1048575M"));
        assert!(message("1048576").ends_with("write 1048576B"));
        assert!(message("2048").ends_with("write 2048M"));
        assert!(message("2147483648").ends_with("write 2147483648B"));
    }

    #[test]
    fn a_size_is_shown_rounded_and_not_cut_off() {
        for text in ["1.1G", "1.9T", "2.3M", "1.5K", "1G", "20G"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
        assert_eq!(ByteSize((1 << 30) - 1).to_string(), "1G");
        assert_eq!(ByteSize::mib(1000).to_string(), "1000M");
        assert_eq!(ByteSize(1023).to_string(), "1023B");
        assert_eq!(ByteSize(1000).to_string(), "1000B");
        assert_eq!(ByteSize(u64::MAX).to_string(), "16384P");
        // 1023.95 and more are rounded to the next unit.
        for (bytes, text) in [(1_048_524, "1023.9K"), (1_048_525, "1M"), (1_048_576, "1M")] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_cause_a_panic(text in ".{0,40}") {
            let _ = text.parse::<ByteSize>();
        }

        #[test]
        fn an_exact_size_is_parsed_to_the_same_number_of_bytes(n in 1_u64..=i64::MAX.unsigned_abs()) {
            prop_assert_eq!(ByteSize(n).exact().parse::<ByteSize>(), Ok(ByteSize(n)));
        }

        #[test]
        fn whole_mebibytes_are_unchanged_by_formatting_and_parsing(n in 1_u64..1024) {
            prop_assert_eq!(ByteSize::mib(n).to_string().parse::<ByteSize>(), Ok(ByteSize::mib(n)));
        }
    }
}
