//! Durations in the configuration file.

use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Reads a duration like `30s` or `2m`.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let span: jiff::SignedDuration = text.parse().map_err(|_| {
        D::Error::custom(format!(
            "invalid duration {text:?}: use for example \"30s\" or \"2m\""
        ))
    })?;
    Duration::try_from(span)
        .ok()
        .filter(|duration| *duration >= Duration::from_millis(100))
        .ok_or_else(|| D::Error::custom(format!("{text:?} is too short; the minimum is 100ms")))
}
