//! Reading of values that only newer versions know.

use serde::de::value::{Error, StringDeserializer};
use serde::de::{Deserialize, DeserializeOwned, Deserializer};

/// Reads a value of an enum; a value that this version does not know is read as `None`. For fields where null means that
/// nothing is known.
pub fn known_or_none<'de, T: DeserializeOwned, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let word = Option::<String>::deserialize(deserializer)?;
    Ok(word.and_then(|word| T::deserialize(StringDeserializer::<Error>::new(word)).ok()))
}
