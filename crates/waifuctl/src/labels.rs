//! Parses labels: `key=value`, and `key-` to remove one.

use std::collections::BTreeMap;

use crate::failure::Failure;
use crate::text::escape;

/// Parses `KEY=VALUE` arguments. Errors name `argument`.
pub fn pairs(argument: &str, typed: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    typed
        .iter()
        .map(|text| {
            pair(text).ok_or_else(|| bad(argument, text, "write KEY=VALUE, for example tier=web"))
        })
        .collect()
}

/// Parses changes of labels: `Some` sets, `None` removes. A repeated key is an error.
pub fn changes(typed: &[String]) -> Result<BTreeMap<String, Option<String>>, Failure> {
    let mut changes = BTreeMap::new();
    for text in typed {
        let (key, value) = match (pair(text), text.strip_suffix('-')) {
            (Some((key, value)), _) => (key, Some(value)),
            (None, Some(key)) if !key.is_empty() && !key.contains('=') => (key.to_owned(), None),
            _ => {
                let hint = "KEY=VALUE sets a label and KEY- removes it: tier=web, tier-";
                return Err(bad("labels", text, hint));
            }
        };
        if changes.insert(key.clone(), value).is_some() {
            return Err(
                Failure::input("invalid-label", format!("label {key:?} is repeated"))
                    .field("labels")
                    .hint("give each label only once"),
            );
        }
    }
    Ok(changes)
}

/// One line with the name and labels of an object.
pub fn summary(name: &str, labels: &BTreeMap<String, String>) -> String {
    let labels: Vec<_> = labels
        .iter()
        .map(|(key, value)| escape(&format!("{key}={value}")))
        .collect();
    if labels.is_empty() {
        format!("{name}: no labels")
    } else {
        format!("{name}: {}", labels.join(" "))
    }
}

fn pair(text: &str) -> Option<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Some((key.to_owned(), value.to_owned())),
        _ => None,
    }
}

fn bad(field: &str, text: &str, hint: &str) -> Failure {
    Failure::input("invalid-label", format!("{text:?} is not a label"))
        .field(field)
        .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_label_without_a_key_is_refused() {
        let labels = pairs("--label", &typed(&["a=b=c"])).unwrap();
        assert_eq!(labels.get("a").map(String::as_str), Some("b=c"));
        assert!(pairs("--label", &typed(&["=x"])).is_err());
        assert!(pairs("--label", &typed(&["x"])).is_err());
    }

    #[test]
    fn a_trailing_dash_removes_a_label_but_not_in_a_value() {
        let changes = changes(&typed(&["a-", "b=c-", "d-e-"])).unwrap();
        assert_eq!(changes.get("a"), Some(&None));
        assert_eq!(changes.get("b"), Some(&Some("c-".to_owned())));
        assert_eq!(changes.get("d-e"), Some(&None));
    }

    #[test]
    fn malformed_and_repeated_labels_are_refused() {
        for bad in [&["a"][..], &["-"], &["=b"], &["a=b", "a-"]] {
            assert_eq!(changes(&typed(bad)).unwrap_err().exit_code(), 1, "{bad:?}");
        }
    }
}
