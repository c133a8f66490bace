//! `cloud_config:` of a description: a mapping that becomes `#cloud-config`.
//!
//! cloud-init reads YAML 1.1 and this program 1.2: `yes` and `0644` mean other things there. So the guest is given the
//! text as it was written, where that can be cut out whole, and else JSON, which both read alike.

use serde::de::{Deserialize, Deserializer};
use serde::{Serialize, Serializer};
use serde_json::Value;
use serde_saphyr::Spanned;

/// The mapping, and where it begins in its file.
#[derive(Clone, PartialEq, Debug)]
pub struct CloudConfig {
    /// What it says.
    pub value: Value,
    /// The line where it begins, from 1; 0 when unknown.
    pub line: u64,
    /// The column, from 1.
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
    /// The user-data. `source` is the text that the description was read from.
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

    /// The lines of a block mapping, moved to the left margin.
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
            // What stands before the mapping on its first line is not of it.
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
