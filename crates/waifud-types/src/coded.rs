//! Typed values on the wire: a stable code, and fields that depend on it.
//!
//! A value is an enum with `#[serde(tag = "code", content = "fields")]`. Its code and fields become members of a larger
//! object, next to an English text. A client that does not know a code, or one of its fields, shows the text.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A code and its fields.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Coded {
    /// A stable code for programs; empty in data from before codes. Further codes may be added.
    #[serde(default)]
    pub code: String,
    /// Fields, depending on the code.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub fields: Map<String, Value>,
}

impl Coded {
    /// The code and the fields of a value.
    pub fn encode(value: &impl Serialize) -> Self {
        let Ok(Value::Object(mut parts)) = serde_json::to_value(value) else {
            return Self::default();
        };
        let code = parts.remove("code");
        let fields = parts.remove("fields");
        Self {
            code: match code {
                Some(Value::String(code)) => code,
                _ => String::new(),
            },
            fields: match fields {
                Some(Value::Object(fields)) => fields,
                _ => Map::new(),
            },
        }
    }

    /// The value, unless this version does not know its code or one of its fields.
    pub fn decode<T: DeserializeOwned>(&self) -> Option<T> {
        let parts = |fields: Option<&Map<String, Value>>| {
            let mut parts = Map::new();
            parts.insert("code".to_owned(), Value::from(self.code.as_str()));
            if let Some(fields) = fields {
                parts.insert("fields".to_owned(), Value::Object(fields.clone()));
            }
            T::deserialize(Value::Object(parts)).ok()
        };
        if self.fields.is_empty() {
            // serde refuses even an empty object for a variant without fields.
            parts(None).or_else(|| parts(Some(&self.fields)))
        } else {
            parts(Some(&self.fields))
        }
    }
}

#[cfg(test)]
pub(crate) mod checks {
    use std::fmt::{Debug, Display};

    use super::*;

    /// Each value has this code and this text, and round-trips.
    pub(crate) fn assert_codes_and_texts<T>(values: Vec<(T, &'static str, &'static str)>)
    where
        T: Serialize + DeserializeOwned + Display + Debug + PartialEq,
    {
        for (value, code, text) in values {
            let coded = Coded::encode(&value);
            assert_eq!(
                (coded.code.as_str(), value.to_string().as_str()),
                (code, text)
            );
            assert_eq!(coded.decode(), Some(value));
        }
    }
}
