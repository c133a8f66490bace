//! Label selectors as in Kubernetes: `tier=web,owner!=ana,!temporary`.

use std::collections::BTreeMap;
use std::str::FromStr;

/// Requirements on labels, all of which must match.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Requirement {
    Is(String, String),
    IsNot(String, String),
    Has(String),
    HasNot(String),
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Result<Vec<_>, _> = text.split(',').map(requirement).collect();
        parts.map(Self)
    }
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let text = text.trim();
    let requirement = if let Some((key, value)) = text.split_once("!=") {
        Requirement::IsNot(key.trim().to_owned(), value.trim().to_owned())
    } else if let Some((key, value)) = text.split_once('=') {
        // `==` is equivalent.
        let value = value.strip_prefix('=').unwrap_or(value);
        Requirement::Is(key.trim().to_owned(), value.trim().to_owned())
    } else if let Some(key) = text.strip_prefix('!') {
        Requirement::HasNot(key.trim().to_owned())
    } else {
        Requirement::Has(text.to_owned())
    };
    let (Requirement::Is(key, _)
    | Requirement::IsNot(key, _)
    | Requirement::Has(key)
    | Requirement::HasNot(key)) = &requirement;
    if key.is_empty() || key.contains(['!', ' ']) {
        return Err(format!(
            "{text:?} is not a selector: write KEY=VALUE, KEY!=VALUE, KEY or !KEY, for example tier=web"
        ));
    }
    Ok(requirement)
}

impl Selector {
    /// Whether the labels match.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::Is(key, value) => labels.get(key) == Some(value),
            Requirement::IsNot(key, value) => labels.get(key) != Some(value),
            Requirement::Has(key) => labels.contains_key(key),
            Requirement::HasNot(key) => !labels.contains_key(key),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_requirements_of_a_selector_must_match() {
        let labels = BTreeMap::from([
            ("tier".to_owned(), "web".to_owned()),
            ("owner".to_owned(), "ana".to_owned()),
        ]);
        let matches = |text: &str| text.parse::<Selector>().unwrap().matches(&labels);
        for yes in [
            "tier=web",
            "tier==web",
            "tier",
            "!temporary",
            "tier!=db",
            "nothing!=x",
            "tier=web, owner",
        ] {
            assert!(matches(yes), "{yes}");
        }
        for no in [
            "tier=db",
            "tier!=web",
            "temporary",
            "!tier",
            "tier=web,owner=eve",
        ] {
            assert!(!matches(no), "{no}");
        }
    }

    #[test]
    fn an_empty_selector_is_refused() {
        for bad in ["", ",", "=x", "!", "tier=web,", "a b", "!=x"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad:?}");
        }
    }
}
