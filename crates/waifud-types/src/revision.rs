//! Counters of changes: revisions of the history, generations of a spec, epochs of an owner.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::string_conversions;

/// The lifetime of one database, which begins at init and at restore. A random number, so that two of them differ.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Incarnation(pub u32);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A position in the history. Written `INCARNATION.N`, with the incarnation as eight hexadecimal digits.
///
/// Revisions of different incarnations have no order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Revision {
    /// The incarnation of the database.
    pub incarnation: Incarnation,
    /// Number of events in that incarnation; 0 before the first.
    pub number: u64,
}

crate::schema::string_schema!(Revision, "Revision");

/// The text is not a revision.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a revision: expected INCARNATION.NUMBER from an earlier response")]
pub struct RevisionError(String);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation, self.number)
    }
}

impl FromStr for Revision {
    type Err = RevisionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || RevisionError(text.chars().take(40).collect());
        let (incarnation, number) = text.split_once('.').ok_or_else(error)?;
        // The number parsers also accept a sign.
        let signed = incarnation.starts_with('+') || number.starts_with('+');
        if incarnation.len() != 8 || signed {
            return Err(error());
        }
        Ok(Self {
            incarnation: Incarnation(u32::from_str_radix(incarnation, 16).map_err(|_| error())?),
            number: number.parse().map_err(|_| error())?,
        })
    }
}

string_conversions!(Revision);

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The first value.
            pub const FIRST: Self = Self(1);

            /// The next value; saturates.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

counter!(
    /// Counts changes of a spec; `ETag` and If-Match on the wire (quoted there: `"7"`).
    Generation
);
counter!(
    /// Counts changes of owner of an instance.
    Epoch
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_unchanged_by_formatting_and_parsing() {
        let revision = Revision {
            incarnation: Incarnation(0xab),
            number: 7,
        };
        assert_eq!(revision.to_string(), "000000ab.7");
        assert_eq!("000000ab.7".parse(), Ok(revision));
    }

    #[test]
    fn malformed_revisions_are_refused() {
        for bad in [
            "",
            "7",
            "ab.7",
            "000000ab.",
            "000000ab.x",
            "zzzzzzzz.1",
            "+00000ab.7",
            "000000ab.+7",
        ] {
            assert!(bad.parse::<Revision>().is_err(), "{bad}");
        }
    }
}
