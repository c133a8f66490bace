//! Names given by users: DNS labels, since guests are resolved by name.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::string_conversions;

/// A DNS label (RFC 1123, section 2.1): 1 to 63 characters of `a-z`, `0-9` and `-`, without a `-` at either end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
pub struct Name(String);

/// The text is not a valid name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid name {text:?}: {why}")]
pub struct NameError {
    text: String,
    why: &'static str,
}

impl Name {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let why = if text.is_empty() {
            "it is empty"
        } else if text.len() > 63 {
            "it is longer than 63 characters"
        } else if !text.chars().all(allowed) {
            "only a-z, 0-9 and - are allowed"
        } else if text.starts_with('-') || text.ends_with('-') {
            "it begins or ends with -"
        } else {
            return Ok(Self(text.to_owned()));
        };
        // The text is part of an error message, so its length is limited.
        Err(NameError {
            text: text.chars().take(80).collect(),
            why,
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

string_conversions!(Name);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_labels_are_accepted() {
        for good in ["a", "web", "web-1", "0day", &"a".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
    }

    #[test]
    fn other_texts_are_refused_with_a_reason() {
        let characters = "only a-z, 0-9 and - are allowed";
        let ends = "it begins or ends with -";
        for (bad, why) in [
            ("", "it is empty"),
            (&"a".repeat(64), "it is longer than 63 characters"),
            ("Web", characters),
            ("web_1", characters),
            ("a.b", characters),
            ("ü", characters),
            ("a\nb", characters),
            ("a/../b", characters),
            ("-a", ends),
            ("a-", ends),
            ("-", ends),
        ] {
            let error = bad.parse::<Name>().unwrap_err();
            assert_eq!(error.to_string(), format!("invalid name {bad:?}: {why}"));
        }
    }
}
