//! `cloud_config` of a description: a mapping that is converted to `#cloud-config`.
//!
//! cloud-init parses YAML 1.1, this program 1.2, which differ in the meaning of `yes` and `0644`. So the guest gets
//! the original text if it can be extracted, and JSON otherwise, which both parse in the same way.

use serde::de::{Deserialize, Deserializer};
use serde::{Serialize, Serializer};
use serde_json::Value;
use serde_saphyr::Spanned;

/// The mapping and its location.
#[derive(Clone, PartialEq, Debug)]
pub struct CloudConfig {
    /// The value.
    pub value: Value,
    /// The first line, from 1; 0 if unknown.
    pub line: u64,
    /// The first column, from 1.
    pub column: u64,
}

impl<'de> Deserialize<'de> for CloudConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            line: spanned.defined.line(),
            column: spanned.defined.column(),
            value: spanned.value,
        })
    }
}

impl Serialize for CloudConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl CloudConfig {
    /// Renders user-data. `source` is the text of the description.
    pub fn render(&self, source: &str) -> String {
        let body = self
            .cut_out(source)
            .filter(|text| {
                serde_saphyr::from_str::<Value>(text).is_ok_and(|value| value == self.value)
            })
            .unwrap_or_else(|| {
                let json = serde_json::to_string_pretty(&self.value).unwrap_or_default();
                json + "\n"
            });
        format!("#cloud-config\n{body}")
    }

    /// The lines of a block mapping without indentation.
    fn cut_out(&self, source: &str) -> Option<String> {
        let indent = usize::try_from(self.column).ok()?.checked_sub(1)?;
        let first = usize::try_from(self.line).ok()?.checked_sub(1)?;
        let mut text = String::new();
        for (index, line) in source.lines().skip(first).enumerate() {
            let depth = line.len() - line.trim_start_matches(' ').len();
            let blank = line.trim().is_empty();
            if depth < indent && !blank {
                break;
            }
            // Text before the mapping on its first line is not part of it.
            if index == 0 && depth != indent {
                return None;
            }
            text.push_str(line.get(indent..).unwrap_or_default());
            text.push('\n');
        }
        let end = text.trim_end_matches('\n').len();
        text.truncate(end);
        text.push('\n');
        Some(text)
    }
}
