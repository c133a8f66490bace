//! Custom columns of a list, and values of instances by a path in their JSON.

use std::cmp::Ordering;
use std::str::FromStr;

use serde_json::Value;

/// Headings of the wide table, in order.
pub const HEADINGS: [&str; 13] = [
    "NAME",
    "STATE",
    "READY",
    "NODE",
    "ADDRESS",
    "CPU",
    "MEM",
    "TEMPLATE",
    "AGE",
    "DISK",
    "HYPERVISOR",
    "RESTART",
    "LABELS",
];

/// Custom columns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Columns(pub Vec<Column>);

/// A column.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Column {
    /// An index into [`HEADINGS`].
    Known(usize),
    /// A heading and the path of the value.
    Path(String, Path),
}

/// A path to a value, for example `.status.addresses[0].address`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path(Vec<Part>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Key(String),
    Index(usize),
}

impl FromStr for Columns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let column = |text: &str| match text.split_once(':') {
            Some((heading, path)) => Ok(Column::Path(heading.to_owned(), path.parse()?)),
            None => known(text).map(Column::Known),
        };
        let columns: Result<Vec<_>, String> = text.split(',').map(column).collect();
        columns.map(Self)
    }
}

/// The index of a heading.
pub fn known(text: &str) -> Result<usize, String> {
    HEADINGS
        .iter()
        .position(|heading| heading.eq_ignore_ascii_case(text))
        .ok_or_else(|| {
            format!(
                "unknown column {text:?}: write one of {}, or HEADING:.path of the JSON",
                HEADINGS.join(", ").to_lowercase()
            )
        })
}

impl Column {
    /// The heading.
    pub fn heading(&self) -> &str {
        match self {
            Self::Known(place) => HEADINGS.get(*place).copied().unwrap_or_default(),
            Self::Path(heading, _) => heading,
        }
    }
}

impl FromStr for Path {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a path: write .status.state or .spec.nics[0].mac");
        // kubectl's braces and a leading dot are optional.
        let inner = text.trim_start_matches('{').trim_end_matches('}');
        let inner = inner.strip_prefix('.').unwrap_or(inner);
        let mut parts = Vec::new();
        for segment in inner.split('.') {
            let (key, indices) = match segment.find('[') {
                Some(at) => segment.split_at(at),
                None => (segment, ""),
            };
            if key.is_empty() {
                return Err(bad());
            }
            parts.push(Part::Key(key.to_owned()));
            let mut rest = indices;
            while !rest.is_empty() {
                let (index, tail) = rest
                    .strip_prefix('[')
                    .and_then(|rest| rest.split_once(']'))
                    .ok_or_else(bad)?;
                parts.push(Part::Index(index.parse().map_err(|_| bad())?));
                rest = tail;
            }
        }
        Ok(Self(parts))
    }
}

impl Path {
    /// The value at the path; null if there is none.
    pub fn of<'a>(&self, value: &'a Value) -> &'a Value {
        self.0.iter().fold(value, |value, part| match part {
            Part::Key(key) => value.get(key).unwrap_or(&Value::Null),
            Part::Index(index) => value.get(index).unwrap_or(&Value::Null),
        })
    }
}

/// Formats a value for a cell of a table.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Orders numbers by value, text alphabetically, and null last.
pub fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Null, Value::Null) => Ordering::Equal,
        (Value::Null, _) => Ordering::Greater,
        (_, Value::Null) => Ordering::Less,
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64(), b.as_f64());
            a.partial_cmp(&b).unwrap_or(Ordering::Equal)
        }
        (a, b) => cell(a).cmp(&cell(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_path_leads_to_a_value_or_to_nothing() {
        let value = json!({"status": {"addresses": [{"address": "10.0.0.1"}], "ready": true}});
        let at = |text: &str| cell(text.parse::<Path>().unwrap().of(&value));
        assert_eq!(at(".status.addresses[0].address"), "10.0.0.1");
        assert_eq!(at("status.ready"), "true");
        assert_eq!(at("{.status.ready}"), "true");
        assert_eq!(at(".status.addresses[1].address"), "-");
        assert_eq!(at(".nothing.at.all"), "-");
        for bad in ["", ".", "a..b", "a[", "a[x]", "[0]", "a[0]b"] {
            assert!(bad.parse::<Path>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn columns_are_headings_or_paths() {
        let columns: Columns = "name,Mac:.spec.nics[0].mac".parse().unwrap();
        let headings: Vec<_> = columns.0.iter().map(Column::heading).collect();
        assert_eq!(headings, ["NAME", "Mac"]);
        let error = "name,colour".parse::<Columns>().unwrap_err();
        assert!(
            error.contains("\"colour\"") && error.contains("hypervisor"),
            "{error}"
        );
    }

    #[test]
    fn values_are_sorted_by_their_kind() {
        let mut values = [json!(null), json!(10), json!(9), json!(null)];
        values.sort_by(compare);
        assert_eq!(values, [json!(9), json!(10), json!(null), json!(null)]);
        assert_eq!(compare(&json!("a"), &json!("b")), Ordering::Less);
    }
}
